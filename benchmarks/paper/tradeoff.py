"""Large-sparse against small-dense at an equal number of non-zero parameters."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from benchmarks.paper.study import Metric, Study
from benchmarks.paper.task import SMALL_DENSE

_FEWER = 10  # times fewer non-zeros, for which the paper's abstract states the loss


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration over its seeds.

    Attributes:
      name: of the configuration.
      curve: that it is a point of, as `Configuration.curve`.
      steps: of each training.
      nonzero: the number of weights that are not zero.
      bytes: by layout.
      metrics: the value of each seed, by metric.
    """

    name: str
    curve: str
    steps: int
    nonzero: int
    bytes: dict[str, int]
    metrics: dict[str, list[float]]

    @property
    def is_sparse(self) -> bool:
        """Whether it was pruned."""
        return self.curve != SMALL_DENSE

    def mean(self, metric: str) -> float:
        """The mean over seeds."""
        return statistics.mean(self.metrics[metric])

    def spread(self, metric: str) -> float:
        """The difference between the highest and the lowest seed."""
        return max(self.metrics[metric]) - min(self.metrics[metric])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pruned network beside a dense one of as many non-zeros.

    Attributes:
      dense: the metric of the dense one.
      gain: how much better the pruned one is.
      spread: of the seeds, the largest of the networks that are compared.
    """

    dense: float
    gain: float
    spread: float

    @property
    def verdict(self) -> Literal["beats", "equals", "loses to"]:
        """What that means; within the spread of seeds they are equal."""
        if abs(self.gain) <= self.spread:
            return "equals"
        return "beats" if self.gain > 0 else "loses to"


def rows(study: Study, records: Sequence[dict[str, Any]]) -> list[Row]:
    """The study's configurations in their order.

    Args:
      study: what was trained.
      records: one for each configuration and seed, as from `runs.run`.

    Returns:
      A row for each configuration; non-zeros and bytes are the means over its seeds.
    """
    summed = []
    for configuration in study.configurations:
        own = [each for each in records if each["configuration"] == configuration.name]
        summed.append(
            Row(
                name=configuration.name,
                curve=configuration.curve,
                steps=own[0]["steps"],
                nonzero=_mean([each["nonzero"] for each in own]),
                bytes={
                    layout: _mean([each["bytes"][layout] for each in own])
                    for layout in own[0]["bytes"]
                },
                metrics={
                    name: [each["metrics"][name] for each in own]
                    for name in own[0]["metrics"]
                },
            )
        )
    return summed


def curves(table: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each curve, the largest network first.

    Args:
      table: rows, first the dense network that the pruned ones start from; what is
        trained for fewer steps than it is no point of a curve.

    Returns:
      Rows by curve, small-dense first; all curves begin with the first row.
    """
    first, *others = table
    found = {first.curve: [first]}
    for row in others:
        if row.steps == first.steps:
            found.setdefault(row.curve, [first]).append(row)
    return {
        name: sorted(curve, key=lambda row: -row.nonzero)
        for name, curve in found.items()
    }


def compare(metric: Metric, row: Row, dense: Sequence[Row]) -> Comparison:
    """A pruned network beside the dense ones, at its number of non-zeros.

    Between two networks the metric is taken to lie on a straight line over the
    logarithm of the non-zeros. One with fewer than the smallest dense network is
    compared with that.

    Args:
      metric: what is compared.
      row: the pruned network, with no more non-zeros than the first dense one.
      dense: the small-dense curve, the largest network first.

    Returns:
      The comparison.
    """
    nonzero = max(row.nonzero, dense[-1].nonzero)
    larger = [each for each in dense if each.nonzero >= nonzero][-1]
    smaller = next(each for each in dense if each.nonzero <= nonzero)
    other = interpolate(dense, nonzero, metric.name)
    return Comparison(
        dense=other,
        gain=metric.gain(row.mean(metric.name), other),
        spread=max(each.spread(metric.name) for each in (row, larger, smaller)),
    )


def interpolate(curve: Sequence[Row], nonzero: float, metric: str) -> float:
    """The metric of a curve at a number of non-zeros, or at the end next to it."""
    sizes = [row.nonzero for row in reversed(curve)]
    values = [row.mean(metric) for row in reversed(curve)]
    return float(np.interp(np.log(nonzero), np.log(sizes), values))


def statements(study: Study, table: Sequence[Row]) -> list[str]:
    """What the figures say, in sentences.

    Args:
      study: with the metric.
      table: its rows.

    Returns:
      Whether the trainings are long enough; of each curve of pruned networks, where it
      beats small-dense, and the loss at ten times fewer non-zeros, or at the fewest if
      that is beyond.
    """
    said = lengths(study.metric, table)
    dense, *sparse = curves(table).items()
    for name, curve in sparse:
        label = name[0].upper() + name[1:]
        if len(dense[1]) > 1:
            said.append(_beside_dense(study.metric, label, curve[1:], dense[1]))
        said.append(_at_fewer(study.metric, label, curve))
    return said


def lengths(metric: Metric, table: Sequence[Row]) -> list[str]:
    """A sentence for each row that was trained for fewer steps than the first."""
    reference, *others = table
    shorter = [row for row in others if row.steps < reference.steps]
    return [_length(metric, reference, row) for row in shorter]


def _length(metric: Metric, reference: Row, shorter: Row) -> str:
    """What as many steps again have brought."""
    value, before = (row.mean(metric.name) for row in (reference, shorter))
    spread = max(row.spread(metric.name) for row in (reference, shorter))
    enough = metric.gain(value, before) <= spread
    verdict = f"{'within' if enough else 'beyond'} the spread of {spread:.2f}"
    if len(reference.metrics[metric.name]) == 1:
        verdict = "of one seed"
    return (
        f"Long enough means that twice as many steps gain no more than the spread of "
        f"seeds: from {shorter.steps:,} steps to {reference.steps:,} the dense network "
        f"({reference.name}) goes from {metric.show(before)} to {metric.show(value)}, "
        f"{verdict}."
    )


def _beside_dense(
    metric: Metric, label: str, curve: Sequence[Row], dense: Sequence[Row]
) -> str:
    """Where a curve of pruned networks beats the dense ones."""
    found: dict[str, list[str]] = {"beats": [], "equals": [], "loses to": []}
    for row in curve:
        sparsity = row.name.partition(",")[0].removesuffix(" %")
        found[compare(metric, row, dense).verdict].append(sparsity)
    parts = [
        f"{verdict} it at {', '.join(sparsities)} %"
        + (" (within the spread of seeds)" if verdict == "equals" else "")
        for verdict, sparsities in found.items()
        if sparsities
    ]
    return f"{label} beside small-dense of as many non-zeros: {', '.join(parts)}."


def _at_fewer(metric: Metric, label: str, curve: Sequence[Row]) -> str:
    """What the dense network loses with ten times fewer non-zeros, or the fewest."""
    reference, *_, smallest = curve
    nonzero = max(reference.nonzero / _FEWER, smallest.nonzero)
    value, before = (
        interpolate(curve, nonzero, metric.name),
        reference.mean(metric.name),
    )
    return (
        f"{label} with {reference.nonzero / nonzero:.3g} times fewer non-zeros "
        f"({nonzero / 1e6:.3g} M) than the dense network: {metric.title} "
        f"{metric.show(value)}, {value - before:+.2f} "
        f"({100 * (value - before) / before:+.1f} % of {metric.show(before)})."
    )


def _mean(values: Sequence[int]) -> int:
    return round(statistics.mean(values))
