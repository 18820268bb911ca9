"""Large-sparse against small-dense at an equal number of non-zero parameters."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.paper.task import Study

_FEWER = 10  # times fewer non-zeros, for which the paper's abstract states the loss


@dataclasses.dataclass(frozen=True)
class Row:
    """A configuration over its seeds.

    Attributes:
      name: of the configuration.
      is_sparse: whether it was pruned.
      parameters, nonzero: numbers of weights.
      bytes: by layout.
      metrics: the value of each seed, by metric.
      seconds: of all its trainings.
    """

    name: str
    is_sparse: bool
    parameters: int
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
                parameters=own[0]["parameters"],
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
    """Small-dense and large-sparse, the largest first; both begin with the reference."""
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
      for the loss at ten times fewer non-zeros.
    """
    dense, sparse = curves(study, table)
    metric = study.metric
    said = []
    for row in sparse[1:] if len(dense) > 1 else ():
        other = _at(dense, row.nonzero, metric.name)
        if other is None:
            if row.nonzero < dense[-1].nonzero:
                said.append(_below_all(study, row, dense[-1]))
            continue
        here = row.mean(metric.name)
        gain = other - here if metric.lower_is_better else here - other
        spread = max(each.spread(metric.name) for each in (row, *dense))
        verdict = "beats" if gain > 0 else "loses to"
        within = ", which is within the spread of seeds" if abs(gain) <= spread else ""
        said.append(
            f"At {_millions(row.nonzero)} non-zeros, large-sparse ({row.name}) {verdict} "
            f"small-dense: {metric.title} {here:.2f} against {other:.2f}{within}."
        )
    reference = sparse[0]
    fewer = _at(sparse, reference.nonzero / _FEWER, metric.name)
    if fewer is not None:
        change = fewer - reference.mean(metric.name)
        said.append(
            f"With {_FEWER} times fewer non-zeros than the dense {reference.name} "
            f"({_millions(reference.nonzero / _FEWER)}), {metric.title} is {fewer:.2f}: "
            f"{change:+.2f}."
        )
    return said


def _below_all(study: Study, row: Row, smallest: Row) -> str:
    """A pruned network with fewer non-zeros than any dense one was trained with."""
    metric = study.metric
    here, other = row.mean(metric.name), smallest.mean(metric.name)
    better = here < other if metric.lower_is_better else here > other
    return (
        f"Large-sparse ({row.name}) has {smallest.nonzero / row.nonzero:.1f} times fewer "
        f"non-zeros than the smallest dense network ({smallest.name}), and is "
        f"{'better' if better else 'worse'}: {metric.title} {here:.2f} against "
        f"{other:.2f}."
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
