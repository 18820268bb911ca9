"""`python -m benchmarks.paper.overview`: all studies in one picture, in the README."""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks import stored
from benchmarks.paper import tradeoff
from benchmarks.paper.studies import STUDIES
from benchmarks.paper.study import Metric, Study
from benchmarks.paper.task import SMALL_DENSE
from benchmarks.paper.tradeoff import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESULTS = stored.FOLDER / "paper" / "results" / "laptop"
_SHOWN = ("mlp", "cnn", "mobilenet", "lstm", "seq2seq")
_FEWER = 10.0
_COLUMNS = 3
_STYLES = {
    SMALL_DENSE: "C7s--",
    "large-sparse": "C0o-",
    "large-sparse, ERK": "C2^-",
    "large-sparse, global": "C1D-",
}


def draw(results: Sequence[tuple[Study, Sequence[Row]]]) -> Figure:
    """Draws the relative loss against the factor of fewer non-zeros, study by study.

    Args:
      results: studies with their rows, the dense network that others are compared with
        first.

    Returns:
      The figure, tied to no window.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    lines = -(-len(results) // _COLUMNS)
    figure = Figure((11, 3.4 * lines), layout="constrained")
    panels = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    for (study, rows), axes in zip(results, panels, strict=False):
        first = rows[0]
        for name, curve in tradeoff.curves(rows).items():
            losses = [_losses(study.metric, first, row) for row in curve]
            axes.plot(
                [first.nonzero / row.nonzero for row in curve],
                [sum(loss) / len(loss) for loss in losses],
                _STYLES[name],
                label=name,
                markersize=4,
            )
            for row, loss in zip(curve, losses, strict=True):
                fewer = first.nonzero / row.nonzero
                axes.plot([fewer] * 2, [min(loss), max(loss)], _STYLES[name][:2])
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 50][: 6 if study.name == "mlp" else 5])
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{study.title}: {study.metric.title}", fontsize="medium")
        axes.set_xlabel("times fewer non-zeros")
        axes.set_ylabel("relative loss, %")
        axes.grid(color="0.9", linewidth=0.5)
    for axes in panels:
        axes.set_axis_off()
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure


def _losses(metric: Metric, first: Row, row: Row) -> list[float]:
    """What each seed loses to the mean of the dense network, in per cent of it."""
    reference = first.mean(metric.name)
    return [
        -100 * metric.gain(value, reference) / reference
        for value in row.metrics[metric.name]
    ]


def sentence(study: Study, rows: Sequence[Row]) -> str:
    """What a study says of ten times fewer non-zeros, or of the fewest it has."""
    first, metric = rows[0], study.metric
    curves = tradeoff.curves(rows)
    dense = curves.pop(SMALL_DENSE)
    fewer = min(
        _FEWER, *(first.nonzero / curve[-1].nonzero for curve in curves.values())
    )

    def at(curve: Sequence[Row]) -> str:
        nonzero = first.nonzero / fewer
        return metric.show(tradeoff.interpolate(curve, nonzero, metric.name))

    pruned = ", ".join(
        f"{at(curve)}{name.removeprefix('large-sparse').replace(', ', ' by ')}"
        for name, curve in curves.items()
    )
    return (
        f"**{study.title}**, {first.nonzero / 1e6:.2g} million weights, {metric.title} "
        f"{metric.show(first.mean(metric.name))}: with {fewer:.2g} times fewer "
        f"non-zeros {pruned}; a dense network of as many has {at(dense)}."
    )


def stored_rows(study: Study, folder: pathlib.Path) -> list[Row] | None:
    """The rows of a study, None while trainings are missing.

    Args:
      study: what was trained.
      folder: that holds its records.
    """
    file = folder / f"{study.name}.json"
    records = json.loads(file.read_text()) if file.exists() else []
    found = collections.Counter(each["configuration"] for each in records)
    if any(found[each.name] < study.seeds for each in study.configurations):
        return None
    return tradeoff.rows(study, records)


def main() -> None:
    """Draws what is stored of all studies, and puts a sentence each into the README."""
    results = []
    for name in _SHOWN:
        study = STUDIES[name]("laptop", None)
        rows = stored_rows(study, _RESULTS)
        if rows is None:
            print(f"{name}: left out, not all of its trainings are stored.")
        else:
            results.append((study, rows))
    picture = _RESULTS / "overview.png"
    draw(results).savefig(picture, dpi=110)
    root = stored.FOLDER.parent
    said = "\n".join(f"- {sentence(*each)}" for each in results)
    place = picture.relative_to(root)
    stored.insert(
        "studies",
        "![Relative loss against the factor of fewer non-zeros, pruned and dense]"
        f"({place})\n\n{said}",
        pathlib.Path(root / "README.md"),
    )


if __name__ == "__main__":
    main()
