"""What channels are worth: coupled, against narrow networks and single kernels.

A ResNet-20 learns Fashion-MNIST; its first convolution has stride 2, so that all runs
take an hour on two cores.
"""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import gradprune_jax as gp
from benchmarks import stored
from benchmarks.paper.images import ImageTask
from benchmarks.paper.task import Configuration
from benchmarks.paper.training import train
from benchmarks.shrink.networks import ResNet
from benchmarks.shrink.speed import compiled_flops, size_of
from gradprune_jax.demo.data import IMAGE_SHAPE, Dataset

SEEDS = (0, 1, 2)
SHARES = (0.3, 0.5)
EPOCHS = 2.5
_BATCH = 64
_WIDTHS = (16, 32, 64)
# Prunes in the middle half of a training, as in the paper.
_WINDOW = (0.25, 0.75)
_MASK_UPDATES = 50


class Row(NamedTuple):
    """One way to a network of fewer FLOPs.

    Attributes:
      name: what it is called.
      configuration: what is trained.
      cut: the parameters and FLOPs that are left after `shrink`.
    """

    name: str
    configuration: Configuration
    cut: dict[str, float]


def rows(dataset: Dataset, epochs: float = EPOCHS) -> list[Row]:
    """Every configuration of the study, the dense network first."""
    steps = round(epochs * len(dataset.train_images) / _BATCH)

    def task(widths: tuple[int, ...]) -> ImageTask:
        network = ResNet(widths, (3, 3, 3), stride=2)
        return ImageTask(network, dataset, steps, _BATCH)

    made = [_row("dense", task(_WIDTHS), None)]
    for share in SHARES:
        structure = gp.CoupledChannels(_groups(task(_WIDTHS)))
        widths = tuple(width - round(share * width) for width in _WIDTHS)
        # A kernel of which a part s of the columns is pruned has 1 - s of its FLOPs.
        alone = 1 - (1 - share) ** 2
        percent = f"{100 * share:.0f} %"
        made += [
            _row(
                f"coupled channels, {percent}",
                task(_WIDTHS),
                gp.Rule(_schedule(share, steps), structure=structure),
            ),
            _row(f"a network of the widths {widths}", task(widths), None),
            _row(
                f"`Channel` of each kernel, {100 * alone:.0f} %",
                task(_WIDTHS),
                gp.Rule(
                    _schedule(alone, steps),
                    where=r"Conv_[1-9]\d*/kernel",
                    structure=gp.Channel(),
                ),
            ),
        ]
    return made


def run(
    dataset: Dataset,
    folder: pathlib.Path,
    report: Callable[[str], None],
    epochs: float = EPOCHS,
) -> list[dict[str, Any]]:
    """Trains what is not stored in a folder yet; returns the records of all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    made = rows(dataset, epochs)
    for seed in SEEDS:
        for number, row in enumerate(made):
            file = folder / f"{number}-{seed}.json"
            if not file.exists():
                report(f"seed {seed}, {row.name}")
                measured = train(
                    row.configuration,
                    seed,
                    folder / f"{number}-{seed}",
                    _say_nothing,
                )
                record = {"name": row.name, "seed": seed, **row.cut, **measured}
                stored.replace(file, json.dumps(record) + "\n")
            found.append(json.loads(file.read_text()))
    return found


def table(records: list[dict[str, Any]]) -> str:
    """The means over seeds, and their spread, as Markdown."""
    lines = [
        "| network | parameters left | FLOPs left | test accuracy, % | spread "
        "| seconds a run |",
        "|-|-|-|-|-|-|",
    ]
    dense = next(record for record in records if record["name"] == "dense")
    for name in dict.fromkeys(record["name"] for record in records):
        own = [record for record in records if record["name"] == name]
        accuracies = [record["metrics"]["accuracy"] for record in own]
        lines.append(
            f"| {name} | {own[0]['parameters_left']:,} "
            f"| {100 * own[0]['flops_left'] / dense['flops_left']:.0f} % "
            f"| {statistics.mean(accuracies):.2f} "
            f"| {max(accuracies) - min(accuracies):.2f} "
            f"| {statistics.mean(record['seconds'] for record in own):.0f} |"
        )
    return "\n".join(lines)


def _say_nothing(step: int, loss: float) -> None:
    """Report no progress within a training."""
    del step, loss


def _row(name: str, task: ImageTask, rule: gp.Rule | None) -> Row:
    """A configuration, and what is left of its network after the cut."""
    params, fn = _network(task)
    if rule is not None:
        params, _ = gp.prune(
            params,
            rule.schedule.final_sparsity,
            where=rule.where,
            structure=rule.structure,
        )
    shrunk = gp.shrink(fn, params, _IMAGES)
    cut = {
        "parameters_left": size_of(shrunk.params),
        "flops_left": compiled_flops(shrunk.fn, shrunk.params, _IMAGES),
    }
    return Row(name, Configuration(name, task, () if rule is None else (rule,)), cut)


def _schedule(sparsity: float, steps: int) -> gp.SparsitySchedule:
    begin, end = (round(part * steps) for part in _WINDOW)
    every = max(1, (end - begin) // _MASK_UPDATES)
    return gp.polynomial_schedule(sparsity, begin, end, every)


def _groups(task: ImageTask) -> gp.ChannelGroups:
    params, fn = _network(task)
    return gp.channel_groups(fn, params, _IMAGES)


_IMAGES = jax.ShapeDtypeStruct((_BATCH, *IMAGE_SHAPE, 1), jnp.float32)


@functools.cache
def _network(task: ImageTask) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Random parameters with biases that live, and the network in inference."""
    params, statistics_ = task.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf + (leaf == 0) * 0.1, params)

    def fn(params: Any, images: Any) -> Any:
        variables = {"params": params, "batch_stats": statistics_}
        return task.network.apply(variables, images, training=False)

    return params, fn
