"""Measures, prints, and writes the tables of `benchmarks/README.md`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.progress import track

from benchmarks import stored
from benchmarks.speed import compilation, mask_update, step, tables


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each case")
    parser.add_argument("--largest", type=int, default=10**8, help="most weights")
    parser.add_argument("--only", choices=PARTS, help="keep the others' last figures")
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    results = stored.read("speed") | stored.machine()
    for part in [arguments.only] if arguments.only else PARTS:
        results[part] = PARTS[part](arguments)
    table = tables.markdown(results)
    print(table)
    if not arguments.dry:
        stored.write("speed", results, table)


def mask_updates(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All mask updates."""
    cases = mask_update.cases(arguments.largest)
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
