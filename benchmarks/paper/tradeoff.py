"""Large-sparse against small-dense at an equal number of non-zero parameters."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.paper.task import Metric, Study

_FEWER = 10  # times fewer non-zeros, for which the paper's abstract states the loss


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration over its seeds.

    Attributes:
      name: of the configuration.
      is_sparse: whether it was pruned.
      nonzero: the number of weights that are not zero.
      bytes: by layout.
      metrics: the value of each seed, by metric.
      seconds: of all its trainings.
    """

    name: str
    is_sparse: bool
    nonzero: int
    bytes: dict[str, int]
    metrics: dict[str, list[float]]
    seconds: float

    def mean(self, metric: str) -> float:
        """The mean over seeds."""
        return statistics.mean(self.metrics[metric])

    def spread(self, metric: str) -> float:
        """The difference between the highest and the lowest seed."""
        return max(self.metrics[metric]) - min(self.metrics[metric])


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
                is_sparse=bool(configuration.rules),
                nonzero=_mean([each["nonzero"] for each in own]),
                bytes={
                    layout: _mean([each["bytes"][layout] for each in own])
                    for layout in own[0]["bytes"]
                },
                metrics={
                    name: [each["metrics"][name] for each in own]
                    for name in own[0]["metrics"]
                },
                seconds=sum(each["seconds"] for each in own),
            )
        )
    return summed


def curves(study: Study, table: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Small-dense and large-sparse, the largest first; both have the reference."""
    (reference,) = (row for row in table if row.name == study.reference)
    dense = [row for row in table if not row.is_sparse]
    sparse = [reference, *(row for row in table if row.is_sparse)]
    return _by_size(dense), _by_size(sparse)


def statements(study: Study, table: Sequence[Row]) -> list[str]:
    """What the figures say, in sentences.

    Between two networks of a curve the metric is taken to lie on a straight line over
    the logarithm of the non-zeros. Nothing is said outside a curve.

    Args:
      study: with the metric.
      table: its rows.

    Returns:
      A sentence for each pruned network that a dense one can be compared with, and one
      for the loss at ten times fewer non-zeros, or at the fewest if that is beyond.
    """
    dense, sparse = curves(study, table)
    compared = sparse[1:] if len(dense) > 1 else []
    said = [_beside_dense(study.metric, row, dense) for row in compared]
    if len(sparse) > 1:
        said.append(_at_fewer(study.metric, sparse))
    return [sentence for sentence in said if sentence]


def _beside_dense(metric: Metric, row: Row, dense: Sequence[Row]) -> str:
    """A pruned network beside the dense ones, at its number of non-zeros."""
    size = f"{row.name}, {_millions(row.nonzero)} non-zeros"
    here, smallest = row.mean(metric.name), dense[-1]

    def noted(gain: float, *others: Row) -> str:
        noise = max(each.spread(metric.name) for each in (row, *others))
        return "; within the spread of seeds" if abs(gain) <= noise else ""

    other = _at(dense, row.nonzero, metric.name)
    if other is not None:
        gain = metric.gain(here, other)
        larger = [each for each in dense if each.nonzero >= row.nonzero][-1]
        smaller = next(each for each in dense if each.nonzero <= row.nonzero)
        return (
            f"At equal non-zeros large-sparse ({size}) "
            f"{'beats' if gain > 0 else 'loses to'} small-dense: {metric.title} "
            f"{metric.show(here)} against {metric.show(other)}, interpolated"
            f"{noted(gain, larger, smaller)}."
        )
    if row.nonzero > dense[0].nonzero:
        return ""
    other = smallest.mean(metric.name)
    gain = metric.gain(here, other)
    return (
        f"Large-sparse ({size}) has {smallest.nonzero / row.nonzero:.1f} times fewer "
        f"non-zeros than the smallest dense network ({smallest.name}) and is "
        f"{'better' if gain > 0 else 'worse'}: {metric.title} "
        f"{metric.show(here)} against {metric.show(other)}{noted(gain, smallest)}."
    )


def _at_fewer(metric: Metric, sparse: Sequence[Row]) -> str:
    """What the dense network loses with ten times fewer non-zeros, or the fewest."""
    reference, *_, smallest = sparse
    nonzero = reference.nonzero / _FEWER
    value = _at(sparse, nonzero, metric.name)
    how = ", interpolated"
    if value is None:
        nonzero, value, how = smallest.nonzero, smallest.mean(metric.name), ""
    change = value - reference.mean(metric.name)
    return (
        f"With {reference.nonzero / nonzero:.3g} times fewer non-zeros "
        f"({_millions(nonzero)}) than the dense network ({reference.name}): "
        f"{metric.title} {metric.show(value)}{how}, {change:+.2f}."
    )


def _at(curve: Sequence[Row], nonzero: float, metric: str) -> float | None:
    """The metric of a curve at a number of non-zeros, or None outside it."""
    sizes = [row.nonzero for row in reversed(curve)]
    if len(curve) < 2 or not sizes[0] <= nonzero <= sizes[-1]:
        return None
    values = [row.mean(metric) for row in reversed(curve)]
    return float(np.interp(np.log(nonzero), np.log(sizes), values))


def _by_size(table: Sequence[Row]) -> list[Row]:
    return sorted(table, key=lambda row: -row.nonzero)


def _mean(values: Sequence[int]) -> int:
    return round(statistics.mean(values))


def _millions(number: float) -> str:
    """A number of weights, in millions."""
    return f"{number / 1e6:.3g} M"
