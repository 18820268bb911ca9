"""Analysis: what belongs together in a program, and what is zero in it.

Two walks over the steps. The first finds the units of every axis of every variable. The
second finds where values are zero, and which units every sum can do without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis, UnitTable


class Zeros(NamedTuple):
    """Where a value is zero.

    Attributes:
      all: whether all of it is.
      along: for each axis, bool [size]: whether all of it is at that index; [1] where
        the size is not known.
    """

    all: bool
    along: Sequence[np.ndarray]

    @classmethod
    def of(cls, is_zero: bool, shape: Sequence[Any]) -> Zeros:
        """All of it, or nothing that is known."""
        return cls(is_zero, [np.full(known_size(size), is_zero) for size in shape])

    @classmethod
    def of_value(cls, value: Any, cut: Sequence[np.ndarray | None]) -> Zeros:
        """Those of numbers; what is cut, bool of each axis, counts as zero."""
        nonzero = np.asarray(value != 0)
        for axis, gone in enumerate(cut):
            if gone is not None and gone.any():
                others = [other for other in range(nonzero.ndim) if other != axis]
                nonzero = nonzero & np.expand_dims(~gone, others)
        axes = range(nonzero.ndim)
        along = [
            np.asarray(~nonzero.any(tuple(other for other in axes if other != axis)))
            for axis in axes
        ]
        return cls(not nonzero.any(), along)


class Analysis:
    """What is known of the variables of a traced function.

    Attributes:
      types: shape and dtype of every variable.
      rules: those of primitives, by their names; that of `""` is for all others.
      units: the units.
      axes: those of each variable, axis by axis.
      zeros: where each variable is zero, once that was looked for.
      scalars: the values of constants without axes.
      cut: the units that are cut, bool.
      unknown: the primitives without a rule that were met, and where.
    """

    def __init__(self, types: Sequence[Any], rules: Mapping[str, Any]) -> None:
        self.types = types
        self.rules = rules
        self.units = UnitTable()
        self.axes: dict[int, Sequence[Axis]] = {}
        self.zeros: dict[int, Zeros] = {}
        self.scalars: dict[int, Any] = {}
        self.unknown: dict[str, str] = {}
        self._reasons: list[tuple[np.ndarray, str]] = []
        self.cut = np.zeros(0, bool)
        # Which sum needs each unit, by its number in a list; -1 for none.
        self._needed_by = np.zeros(0, int)
        self._sums: list[Step] = []

    def rule_of(self, step: Step) -> Any:
        """The rule of a step's primitive; that of `""` where it has none."""
        return self.rules.get(step.primitive.name, self.rules[""])

    def shape(self, variable: int) -> Sequence[Any]:
        """The shape of a variable."""
        return self.types[variable].shape

    def new_axes(self, shape: Sequence[Any]) -> list[Axis]:
        """Axes whose indices are units of their own."""
        return [
            self.units.new_axis(size) if isinstance(size, int) and size > 1 else None
            for size in shape
        ]

    def zeros_of(self, variable: int, value: Any) -> Zeros:
        """Where a value that is known is zero, or cut."""
        is_number = jax.numpy.issubdtype(self.types[variable].dtype, np.number)
        if is_traced(value) or not is_number:
            return Zeros.of(False, self.shape(variable))
        cut = [
            None if self.units.resolve(axis) is None else self.is_cut(axis)
            for axis in self.axes[variable]
        ]
        return Zeros.of_value(value, cut)

    def fix(self, axis: Axis, reason: str) -> None:
        """Never cut an axis, and remember why."""
        resolved = self.units.resolve(axis)
        if resolved is not None:
            self._reasons.append((resolved[resolved >= 0], reason))
            self.units.fix(resolved)

    def reason(self, unit: int) -> str:
        """Why a unit is fixed."""
        for units, reason in self._reasons:
            axis = self.units.resolve(units.reshape(-1, 1), with_fixed=True)
            if axis is not None and (axis == unit).any():
                return reason
        return ""

    def join(self, one: Axis, other: Axis, step: Step) -> Axis:
        """Cut two axes alike; what fixes one fixes the other."""
        is_fixed = [self.units.resolve(axis) is None for axis in (one, other)]
        if not any(is_fixed):
            return self.units.join(one, other)
        if not all(is_fixed):
            free, met = (other, one) if is_fixed[0] else (one, other)
            fixed = self.units.resolve(met, with_fixed=True)
            reason = "" if fixed is None else self.reason(int(fixed.max()))
            self.fix(free, reason or f"{step.primitive.name}, {step.source}")
        return one

    def fix_variable(self, variable: int, reason: str) -> None:
        """Never cut any axis of a variable."""
        for axis in self.axes[variable]:
            self.fix(axis, reason)

    def needs(self, axis: Axis, is_zero: np.ndarray, step: Step) -> None:
        """Keep the units of a sum's terms, but for those that are zero."""
        resolved = self.units.resolve(axis)
        if resolved is not None:
            is_needed = ~np.broadcast_to(is_zero, len(resolved)) & ~self.is_cut(axis)
            needed = resolved[is_needed]
            self._needed_by[needed[needed >= 0]] = len(self._sums)
            self._sums.append(step)

    def why_needed(self, unit: int) -> str:
        """Which sum needs a unit, and where it is; empty if none does."""
        number = self._needed_by[unit]
        if number < 0:
            return ""
        step = self._sums[number]
        return f"{step.primitive.name}, {step.source}"

    def is_cut(self, axis: Axis) -> np.ndarray:
        """Which indices of an axis are cut so far: bool [size]."""
        resolved = self.units.resolve(axis)
        if resolved is None:
            return np.zeros(1, bool)
        return np.asarray((self.cut[resolved] & (resolved >= 0)).any(1))

    def start_over(self) -> None:
        """Forget what sums need, before zeros are looked for once more."""
        self._needed_by = np.full(len(self.units), -1)
        self._sums = []

    def cut_more(self) -> bool:
        """Cut the units that no sum needs; return whether there were any."""
        before = self.cut
        self.cut = before | ~((self._needed_by >= 0) | self.units.fixed)
        return not np.array_equal(before, self.cut)

    def keep_one_of_each(self) -> None:
        """Keep one index of every axis: arrays without elements are no use to anyone.

        Those that were cut add zero to every sum, so any of them may stay.
        """
        for axes in self.axes.values():
            for resolved in map(self.units.resolve, axes):
                if resolved is not None and self.is_cut(resolved).all():
                    first = resolved[0]
                    self.cut[first[first >= 0]] = False


def known_size(size: Any) -> int:
    """A size, or 1 where it is a symbol."""
    return size if isinstance(size, int) else 1
