"""The picture of a study: the metric against non-zeros, two curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.paper import tradeoff
from benchmarks.paper.study import Study
from benchmarks.paper.tradeoff import Row
from gradprune_jax import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws small-dense and large-sparse networks, means with the range of seeds.

    Args:
      study: with the metric.
      rows: its configurations.

    Returns:
      The figure, tied to no window.
    """
    points = {}
    for label, curve in tradeoff.curves(rows).items():
        first, *others = [
            (row.nonzero, row.metrics[study.metric.name], row.name.partition(",")[0])
            for row in curve
        ]
        # Where the curves begin, one name is enough.
        points[label] = [first if not points else (*first[:2], ""), *others]
    return report.plot_tradeoff(points, metric=study.metric.label, title=study.title)
