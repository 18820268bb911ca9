"""Measures, prints, and writes the tables of `benchmarks/README.md`."""

from __future__ import annotations

import argparse

from rich.progress import track

from benchmarks import stored
from benchmarks.speed import mask_update, step, tables


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="calls of each case")
    parser.add_argument("--largest", type=int, default=10**8, help="most weights")
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    results = stored.machine() | {
        "mask_update": [
            mask_update.measure(case, arguments.repeats)
            for case in track(mask_update.cases(arguments.largest), "mask updates")
        ],
        "step": [
            step.measure(name, 5 * arguments.repeats)
            for name in track(list(step.PROBLEMS), "steps")
        ]
        + [step.measure_sweep(5 * arguments.repeats)],
    }
    table = tables.markdown(results)
    print(table)
    if not arguments.dry:
        stored.write("speed", results, table)


if __name__ == "__main__":
    main()
