"""The accuracy of every method at every sparsity, and their order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.paper import tradeoff
from benchmarks.paper.study import Study
from benchmarks.paper.task import SMALL_DENSE
from benchmarks.paper.tradeoff import Row
from benchmarks.sparse_training.methods import METHODS


def accuracies(study: Study, rows: Sequence[Row]) -> str:
    """A line for each method, a column for each sparsity.

    Args:
      study: what was trained.
      rows: its configurations, the dense one first.

    Returns:
      Markdown: means over seeds, with the spread between them; and a sentence on the
      order at each sparsity.
    """
    metric = study.metric
    found = {row.name: row for row in rows}
    sparsities = list(
        dict.fromkeys(
            row.name.rpartition(", ")[2] for row in rows if row.curve != SMALL_DENSE
        )
    )
    lines = [
        "| | " + " | ".join(sparsities) + " |",
        "|-|" + "-|" * len(sparsities),
        _line("dense", [rows[0]] * len(sparsities), metric.name),
    ]
    for method in METHODS:
        own = [found[f"{method.name}, {sparsity}"] for sparsity in sparsities]
        lines.append(_line(method.name, own, metric.name))
    dense = tradeoff.curves(rows)[SMALL_DENSE]
    if len(dense) > 1:
        erk = [found[f"gradual, ERK, {sparsity}"] for sparsity in sparsities]
        values = [tradeoff.interpolate(dense, row.nonzero, metric.name) for row in erk]
        lines.append(
            "| small-dense of as many weights | "
            + " | ".join(f"{value:.2f}" for value in values)
            + " |"
        )
    said = [
        *tradeoff.lengths(metric, rows),
        *(
            f"At {sparsity}: {_order(found, sparsity, metric.name)}."
            for sparsity in sparsities
        ),
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {each}" for each in said)


def _line(name: str, rows: Sequence[Row], metric: str) -> str:
    cells = [f"{row.mean(metric):.2f} ({row.spread(metric):.2f})" for row in rows]
    return f"| {name} | {' | '.join(cells)} |"


def _order(found: dict[str, Row], sparsity: str, metric: str) -> str:
    """Static, SET, RigL and gradual pruning, from the worst to the best.

    Two of them are equal if their means differ by no more than the larger spread.
    """
    names = ("static", "SET", "RigL", "gradual, ERK")
    rows = sorted(
        ((found[f"{name}, {sparsity}"], name) for name in names),
        key=lambda pair: pair[0].mean(metric),
    )
    said = rows[0][1]
    for (one, _), (other, name) in itertools.pairwise(rows):
        spread = max(one.spread(metric), other.spread(metric))
        is_equal = other.mean(metric) - one.mean(metric) <= spread
        said += f" {'<=' if is_equal else '<'} {name}"
    return said
