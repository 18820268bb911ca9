"""`python -m benchmarks.shrink`: measures, prints, and writes its tables."""

from __future__ import annotations

import argparse

from rich.progress import track

from benchmarks import stored
from benchmarks.shrink import speed
from benchmarks.shrink.networks import NETWORKS, case


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.shrink", description=__doc__)
    parser.add_argument("--only", choices=NETWORKS, action="append", help="one network")
    parser.add_argument("--batch", type=int, action="append", help="a size of batches")
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    batches = tuple(arguments.batch or speed.BATCHES)
    rows = [
        row
        for name in track(arguments.only or NETWORKS, "networks")
        for row in speed.measure(case(name), name, batches)
    ]
    results = {"speed": rows} | stored.machine()
    table = (
        f"{speed.table(rows)}\n\nMedians of calls in turns, by `python -m "
        f"benchmarks.shrink` on {results['machine']}, {results['date']}, "
        f"jax {results['jax']}."
    )
    print(table)
    if not arguments.dry:
        stored.write("shrink", results, table)


if __name__ == "__main__":
    main()
