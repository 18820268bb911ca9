"""Every pattern and allocation, trained on the demonstration's data.

The demonstration's CNN (Linen), data, optimizer and schedule; the same seeds give all
runs the same initialisation and the same batches.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import optax
from rich.progress import Progress

import gradprune_jax as gp
from benchmarks import stored
from gradprune_jax.demo import data, learners, training

EPOCHS = 12
SOURCE = "Fashion-MNIST, 8,000 images for training and 2,000 for testing"
LAYERS = ("conv1", "conv2", "dense1", "dense2")
# One input channel has no groups of four, and 25 weights a filter are few.
FIRST = gp.Rule(None, where="conv1/.*")
# The classes are the channels of the last layer.
LAST = gp.Rule(None, where="dense2/.*")


def configurations(
    schedule_to: Callable[[float], gp.SparsitySchedule],
) -> dict[str, list[gp.Rule] | None]:
    """The rules of every run, by what it is called.

    Args:
      schedule_to: the schedule to a final sparsity.
    """
    return {
        "dense": None,
        "90 % of weights, uniform": [gp.Rule(schedule_to(0.9))],
        "90 % of weights, ERK": [gp.Rule(schedule_to(0.9), allocation="erk")],
        "90 % of weights, global": [
            gp.Rule(schedule_to(0.9), allocation="global", min_density=0.01)
        ],
        "2:4, but for conv1": [FIRST, gp.Rule(schedule_to(0.5), structure=gp.NM(2, 4))],
        "1:8, but for conv1": [
            FIRST,
            gp.Rule(schedule_to(7 / 8), structure=gp.NM(1, 8)),
        ],
        "80 % of 4x4 blocks, but for conv1": [
            FIRST,
            gp.Rule(schedule_to(0.8), structure=gp.Block((4, 4))),
        ],
        "50 % of channels, but for dense2": [
            LAST,
            gp.Rule(schedule_to(0.5), structure=gp.Channel()),
        ],
        "2:4 in conv2, 80 % of blocks in dense1, dense2 dense": [
            LAST,
            gp.Rule(schedule_to(0.5), where="conv2/kernel", structure=gp.NM(2, 4)),
            gp.Rule(
                schedule_to(0.8), where="dense1/kernel", structure=gp.Block((4, 4))
            ),
            gp.Rule(schedule_to(0.5)),
        ],
    }


def run(images: data.Dataset, name: str, seed: int, report: Any) -> dict[str, Any]:
    """Trains one configuration; its accuracy, and the weights that are left."""
    task = training.Training(images, SOURCE, EPOCHS, seed)
    rules = configurations(task.schedule)[name]
    tx = task.optimizer()
    if rules is not None:
        tx = optax.chain(tx, gp.gradual_prune(rules))
    learner = learners.create("linen", tx, seed)
    finished = training.train(task, learner, prunes=rules is not None, report=report)
    if rules is not None:
        gp.check_pruned(finished.params, finished.opt_state)
    zeros = gp.sparsity(finished.params)
    return {
        "name": name,
        "seed": seed,
        "steps": task.steps,
        "correct": finished.correct[-1],
        "test_images": finished.test_images,
        "sparsity": {path: float(fraction) for path, fraction in zeros.items()},
        "dead_channels": {
            path: len(channels)
            for path, channels in gp.dead_channels(finished.params).items()
        },
    }


def table(results: dict[str, Any]) -> str:
    """The runs as Markdown, means over seeds."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in results["runs"]:
        runs.setdefault(row["name"], []).append(row)
    dense = _accuracy(runs["dense"])
    lines = [
        "| pruned | accuracy, % | to dense | spread | zeros, % of all parameters "
        "| conv1 | conv2 | dense1 | dense2 | dead channels |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    for name, rows in runs.items():
        accuracy = _accuracy(rows)
        each = [_accuracy([row]) for row in rows]
        zeros = [
            100 * statistics.mean(row["sparsity"][path] for row in rows)
            for path in (
                "total",
                *(
                    f"{layer}/kernel"
                    for layer in ("conv1", "conv2", "dense1", "dense2")
                ),
            )
        ]
        dead = statistics.mean(sum(row["dead_channels"].values()) for row in rows)
        cells = [
            f"{accuracy:.2f}",
            f"{accuracy - dense:+.2f}",
            f"{max(each) - min(each):.2f}",
            *(f"{value:.1f}" for value in zeros),
            f"{dead:.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = len(runs["dense"])
    steps = results["runs"][0]["steps"]
    lines += [
        "",
        f"{SOURCE}; {steps:,} steps in {EPOCHS} epochs; means of {seeds} seeds, with "
        "the spread between them. Trained by `python -m benchmarks.patterns` on "
        f"{results['machine']}, {results['date']}, jax {results['jax']}.",
    ]
    return "\n".join(lines)


def _accuracy(rows: list[dict[str, Any]]) -> float:
    """The mean accuracy in per cent."""
    return 100 * statistics.mean(row["correct"] / row["test_images"] for row in rows)


def main() -> None:
    """Trains all configurations, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.patterns", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--resume", action="store_true", help="train only what is not stored yet"
    )
    arguments = parser.parse_args()
    images = data.load()
    names = list(configurations(lambda sparsity: gp.one_shot_schedule(sparsity, 0)))
    runs = stored.read("patterns").get("runs", []) if arguments.resume else []
    results: dict[str, Any] = {"runs": runs}
    trained = {(row["name"], row["seed"]) for row in runs}
    with Progress() as progress:
        task = progress.add_task("runs", total=len(names) * arguments.seeds)
        for seed in range(arguments.seeds):
            for name in names:
                progress.update(task, description=f"{name}, seed {seed}")
                if (name, seed) not in trained:
                    runs.append(run(images, name, seed, lambda _: None))
                progress.advance(task)
    results |= stored.machine()
    print(table(results))
    stored.write("patterns", results, table(results))


if __name__ == "__main__":
    main()
