"""The picture of a study: the metric against non-zeros, two curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.paper import tradeoff
from benchmarks.paper.task import Study
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
    dense, sparse = tradeoff.curves(study, rows)
    curves = {"large-sparse": sparse}
    if len(dense) > 1:
        curves["small-dense"] = dense
    points = {
        label: [
            (
                row.nonzero,
                row.metrics[study.metric.name],
                # Where both curves begin, one name is enough.
                ""
                if curve is sparse and row in curves.get("small-dense", ())
                else row.name.rpartition(", ")[2],
            )
            for row in curve
        ]
        for label, curve in curves.items()
    }
    return report.plot_tradeoff(points, metric=study.metric.label, title=study.title)
