"""Measures, prints, and writes the tables of `benchmarks/README.md`.

An accelerator has tables of its own, beside those of the CPU.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
from rich.progress import track

from benchmarks import stored
from benchmarks.speed import compilation, mask_update, step, tables


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each case")
    parser.add_argument("--largest", type=int, default=10**8, help="most weights")
    parser.add_argument("--only", choices=PARTS, help="keep the others' last figures")
    parser.add_argument(
        "--family", choices=mask_update.FAMILIES, help="of mask updates, these alone"
    )
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    backend = jax.default_backend()
    name = "speed" if backend == "cpu" else f"speed-{backend}"
    results = stored.read(name) | stored.machine()
    for part in [arguments.only] if arguments.only else PARTS:
        results[part] = PARTS[part](arguments)
    table = tables.markdown(results)
    print(table)
    if not arguments.dry:
        stored.write(name, results, table)


def mask_updates(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All mask updates."""
    families = [arguments.family] if arguments.family else mask_update.FAMILIES
    cases = mask_update.cases(arguments.largest, families)
    return [
        mask_update.measure(case, arguments.repeats)
        for case in track(cases, "mask updates")
    ]


def steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All steps without a mask update."""
    repeats = 5 * arguments.repeats
    measured = [step.measure(name, repeats) for name in track(step.PROBLEMS, "steps")]
    return [*measured, step.measure_sweep(repeats)]


def compilations(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The trees of shapes, each compiled once."""
    del arguments
    trees = track(compilation.TREES.items(), "compilations")
    return [
        compilation.measure(name, shapes(), fields) for name, (shapes, fields) in trees
    ]


PARTS = {"mask_update": mask_updates, "step": steps, "compile": compilations}


if __name__ == "__main__":
    main()
