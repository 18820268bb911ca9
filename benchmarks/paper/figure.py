"""The picture of a study: the metric against non-zeros, two curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.paper import tradeoff
from benchmarks.paper.task import Study
from benchmarks.paper.tradeoff import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DENSE = "#64748b"
_SPARSE = "#1d4ed8"


def draw(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws small-dense and large-sparse networks, means with the range of seeds.

    Args:
      study: with the metric.
      rows: its configurations.

    Returns:
      The figure, tied to no window.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    dense, sparse = tradeoff.curves(study, rows)
    drawn = [(sparse, "large-sparse", _SPARSE, "o")]
    if len(dense) > 1:
        drawn.append((dense, "small-dense", _DENSE, "s"))
    for curve, label, color, marker in drawn:
        values = [row.metrics[study.metric.name] for row in curve]
        means = [row.mean(study.metric.name) for row in curve]
        below = [mean - min(each) for mean, each in zip(means, values, strict=True)]
        above = [max(each) - mean for mean, each in zip(means, values, strict=True)]
        axes.errorbar(
            [row.nonzero for row in curve],
            means,
            yerr=(below, above),
            label=label,
            color=color,
            marker=marker,
            capsize=3,
        )
        for row, mean in zip(curve, means, strict=True):
            if row.is_sparse != (curve is sparse):
                continue  # where both curves begin, one name is enough
            axes.annotate(
                row.name.rpartition(", ")[2],
                (row.nonzero, mean),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize="x-small",
                color=color,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("non-zero parameters")
    axes.set_ylabel(study.metric.label)
    axes.set_title(study.title)
    axes.grid(which="both", color="#e5e7eb", linewidth=0.5)
    axes.legend()
    return figure
