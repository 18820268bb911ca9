"""What a study compares, and by which metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from benchmarks.paper.task import Configuration


@dataclasses.dataclass(frozen=True)
class Metric:
    """What a study measures.

    Attributes:
      name: its key in what `Task.evaluate` returns.
      title: what it is called.
      unit: "%", or nothing.
      lower_is_better: as for an error or a perplexity.
    """

    name: str
    title: str
    unit: str
    lower_is_better: bool

    @property
    def label(self) -> str:
        """The title and the unit, for an axis or the head of a column."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f"{value:.2f} {self.unit}".rstrip()

    def gain(self, value: float, other: float) -> float:
        """How much better a value is than another one."""
        return other - value if self.lower_is_better else value - other


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What networks should do better than.

    Attributes:
      name: of another kind of model.
      value: what it reaches, in the metric of the study.
      reason: why networks may fall short of it.
    """

    name: str
    value: float
    reason: str


@dataclasses.dataclass(frozen=True)
class Remark:
    """What the paper says of a choice, and what it would make of a configuration.

    Attributes:
      text: the remark.
      expects: whether the configuration should then do worse than the reference, or
        the same; None if the paper does not say.
    """

    text: str
    expects: Literal["worse", "same"] | None


@dataclasses.dataclass(frozen=True)
class Study:
    """Configurations that are trained for equally many steps and compared.

    One may be trained for fewer, to see whether the others are trained long enough.

    Attributes:
      name: of its files.
      title: a heading.
      metric: what is compared.
      configurations: the rows, first the one that all others are compared with.
      seeds: how often each is trained.
      source: the data, in words.
      checksum: the data, in one number.
      others: further metrics that its table shows.
      baseline: another model of the same data.
      remarks: of the paper, by configuration.
      notes: sentences to print below the table.
    """

    name: str
    title: str
    metric: Metric
    configurations: tuple[Configuration, ...]
    seeds: int
    source: str
    checksum: int
    others: tuple[Metric, ...] = ()
    baseline: Baseline | None = None
    remarks: Mapping[str, Remark] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
