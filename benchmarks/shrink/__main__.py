"""`python -m benchmarks.shrink`: measures, prints, and writes its tables."""

from __future__ import annotations

import argparse
import pathlib
from collections import defaultdict
from typing import Any

from rich.progress import track

from benchmarks import stored
from benchmarks.shrink import accuracy, peer, speed
from benchmarks.shrink.networks import NETWORKS, case
from gradprune_jax.demo import data


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.shrink", description=__doc__)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="one network")
    parser.add_argument("--batch", type=int, action="append", help="a size of batches")
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help="IDX files of Fashion-MNIST: train instead, and compare accuracies",
    )
    parser.add_argument(
        "--peer", help="the Python of an environment with torch-pruning: compare both"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("shrink-results"),
        help="the folder for records of trainings, which go on from there",
    )
    parser.add_argument(
        "--epochs", type=float, default=accuracy.EPOCHS, help="of a training"
    )
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    part = "speed"
    if arguments.data_dir is not None:
        part = "accuracy"
    elif arguments.peer is not None:
        part = "peer"
    results = stored.read("shrink") | {part: PARTS[part](arguments)}
    results[f"{part}_on"] = stored.machine()
    text = tables(results)
    print(text)
    if not arguments.dry:
        stored.write("shrink", results, text)


def measure_speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every network, dense and cut, in turns; of those left out the last figures."""
    batches = tuple(arguments.batch or speed.BATCHES)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in stored.read("shrink").get("speed", []):
        rows[row["network"]].append(row)
    for name in track(arguments.only or NETWORKS, "networks"):
        rows[name] = speed.measure(case(name), name, batches)
    return [row for name in NETWORKS for row in rows[name]]


def measure_accuracy(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every training of the study on Fashion-MNIST."""
    dataset = data.load(arguments.data_dir)
    return accuracy.run(dataset, arguments.out, print, arguments.epochs)


def tables(results: dict[str, Any]) -> str:
    """All tables as Markdown, each with where and when it was measured."""
    parts = []
    for part, title, table in (
        ("speed", "Time and FLOPs", speed.table),
        ("peer", "Side by side with Torch-Pruning", peer.table),
        ("accuracy", "Accuracy on Fashion-MNIST", accuracy.table),
    ):
        if part in results:
            where = results[f"{part}_on"]
            parts.append(
                f"**{title}**\n\n{table(results[part])}\n\nBy `python -m "
                f"benchmarks.shrink` on {where['machine']}, {where['date']}, "
                f"jax {where['jax']}."
            )
    return "\n\n".join(parts)


def measure_peer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The same network by Torch-Pruning."""
    return peer.measure(arguments.peer)


PARTS = {"speed": measure_speed, "peer": measure_peer, "accuracy": measure_accuracy}


if __name__ == "__main__":
    main()
