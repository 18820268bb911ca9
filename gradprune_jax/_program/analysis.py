"""Analysis: what belongs together in a program, what is zero, and what is needed.

Three walks over the steps. The first finds the units of every axis of every variable.
The second finds where values are zero. The third goes back from the outputs: a unit is
live if it is fixed, or if a sum whose result is live has a term there that is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis, UnitTable
from gradprune_jax._program.zeros import Zeros, nonzero

# Primitives whose rules need numbers, and the parameters that have them.
_SIZES = {"tile": "reps", "pad": "padding_config", "split": "sizes"}


class Analysis:
    """What is known of the variables of a traced function.

    Attributes:
      types: shape and dtype of every variable.
      rules: those of primitives, by their names; that of `""` is for all others.
      units: the units.
      axes: those of each variable, axis by axis.
      zeros: where each variable is zero, once that was looked for.
      alike: for some variables, for each axis the indices, bool [size], at which it is
        what it would be if all that lies along the axis were zero there: the same at
        all of them (`fills`).
      producers: the step that writes a variable.
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
        self.alike: dict[int, Sequence[np.ndarray]] = {}
        self.producers: dict[int, Step] = {}
        self.scalars: dict[int, Any] = {}
        self.unknown: dict[str, str] = {}
        # Where numbers that are known are not zero.
        self._patterns: dict[int, np.ndarray] = {}
        self._reasons: list[tuple[np.ndarray, str]] = []
        self.cut = np.zeros(0, bool)
        # Which sum needs each unit, by its number in a list; -1 for none.
        self._needed_by = np.zeros(0, int)
        self._sums: list[Step] = []
        # Units that are kept so that no axis loses all its indices.
        self._kept = np.zeros(0, bool)

    def rule_of(self, step: Step) -> Any:
        """The rule of a step's primitive; that of `""` where it has none."""
        name = step.primitive.name
        sizes = step.params.get(_SIZES.get(name, ""), ())
        if not all(isinstance(n, int | np.integer) for n in jax.tree.leaves(sizes)):
            name = ""  # a symbol
        return self.rules.get(name, self.rules[""])

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
        """Where a value, or its pattern of what is not zero, is zero or cut."""
        pattern = nonzero(value)
        if pattern is None:
            return Zeros.of(False, self.shape(variable))
        for axis, units in enumerate(self.axes[variable]):
            gone = self.is_cut(units)
            if gone.any():
                others = [other for other in range(pattern.ndim) if other != axis]
                pattern = pattern & np.expand_dims(~gone, others)
        self._patterns[variable] = pattern
        return Zeros.of_pattern(pattern)

    def copy_patterns(self, variables: Sequence[int], to: Sequence[int]) -> None:
        """Take over where numbers are not zero, into the inputs of a body.

        Args:
          variables: of which it may be known.
          to: as many inputs, or more. One of fewer axes is a layer of its variable.
        """
        for variable, inner in zip(variables, to, strict=False):
            pattern = self._patterns.get(variable)
            if pattern is not None:
                layers = pattern.ndim - len(self.shape(inner))
                any_layer = np.any(pattern, tuple(range(layers)))
                self._patterns[inner] = np.asarray(any_layer)

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
        first, second = self.units.resolve(one), self.units.resolve(other)
        if first is not None and second is not None:
            return self.units.join(first, second)
        if first is not None or second is not None:
            free, met = (other, one) if first is None else (one, other)
            fixed = self.units.resolve(met, with_fixed=True)
            reason = "" if fixed is None else self.reason(int(fixed.max()))
            self.fix(free, reason or f"{step.primitive.name}, {step.source}")
        return one

    def fix_variable(self, variable: int, reason: str) -> None:
        """Never cut any axis of a variable."""
        for axis in self.axes[variable]:
            self.fix(axis, reason)

    def zero_terms(self, variable: int, axis: int, summed: Sequence[int]) -> np.ndarray:
        """Where all terms of a sum along an axis are zero, for results that are live.

        Args:
          variable: an operand of the sum.
          axis: the axis.
          summed: all axes of the operand that are summed over; the others are axes of
            the result.
        """
        is_zero = self.zeros[variable].along[axis]
        pattern = self._patterns.get(variable)
        if pattern is None:
            return is_zero
        for other, units in enumerate(self.axes[variable]):
            if other not in summed:
                live = self._live_indices(units)
                if live is not None and not live.all():
                    pattern = pattern.compress(live, other)
        others = tuple(other for other in range(pattern.ndim) if other != axis)
        return is_zero | ~pattern.any(others)

    def is_live(self, variable: int) -> bool:
        """Whether anything of a variable may be needed, as far as is known by now."""
        along = map(self._live_indices, self.axes[variable])
        return all(live is None or bool(live.any()) for live in along)

    def _live_indices(self, axis: Axis) -> np.ndarray | None:
        """Which indices of an axis have live units alone, bool [size]; None for all."""
        resolved = self.units.resolve(axis)
        if resolved is None:
            return None
        live = self._live[resolved] | (resolved < 0)
        return np.asarray(live.all(1))

    @property
    def needed(self) -> int:
        """How many units are needed, as far as is known by now."""
        return int(np.sum(self._needed_by >= 0))

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

    def begin(self) -> None:
        """Cut nothing yet, of all units that were found."""
        self.cut = np.zeros(len(self.units), bool)
        self._kept = np.zeros(len(self.units), bool)
        self.start_over()

    def start_over(self) -> None:
        """Forget what sums need, before that is looked for once more."""
        self._needed_by = np.full(len(self.units), -1)
        self._sums = []

    def cut_more(self) -> bool:
        """Cut the units that no sum needs; return whether there were any."""
        before = self.cut
        self.cut = before | ~(self._live | self.units.fixed)
        return not np.array_equal(before, self.cut)

    def keep_one_of_each(self) -> bool:
        """Keep one index of every axis; return whether any would have been lost.

        Arrays without elements are no use to anyone. What the index needs is kept too:
        computed from less, it might become NaN, which a zero of its reader leaves NaN.
        So all that was cut is to be found again.
        """
        lost = False
        for axes in self.axes.values():
            for resolved in map(self.units.resolve, axes):
                if resolved is not None and self.is_cut(resolved).all():
                    first = resolved[0]
                    first = first[first >= 0]
                    lost = lost or not self._kept[first].all()
                    self._kept[first] = True
        if lost:
            self.cut = np.zeros(len(self.units), bool)
        return lost

    @property
    def _live(self) -> np.ndarray:
        """Which units are needed or kept, as far as is known by now: bool."""
        return (self._needed_by >= 0) | self._kept
