"""Primitives that reduce axes, or go along one: sums, extremes, windows, sorts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.rules.fills import alike_along, fillable, sum_of_cut
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros, known_size

EXTREMES = (
    *("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin"),
)
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min")


class Reduce(PrimitiveRule):
    """Some axes go; all others pass."""

    parameter = "axes"
    is_sum = False

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix the axes that go, unless they are summed over."""
        operand = step.operands[0]
        gone = self._gone(step)
        if not self.is_sum:
            for other in step.operands:
                for axis in gone:
                    analysis.fix(
                        analysis.axes[other][axis],
                        f"{step.primitive.name}, {step.source}",
                    )
        own = analysis.axes[operand]
        for other in step.operands[1:]:
            own = [
                analysis.join(*pair, step)
                for pair in zip(own, analysis.axes[other], strict=True)
            ]
        axes = [axis for place, axis in enumerate(own) if place not in gone]
        return [axes for _ in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where the operand is."""
        zeros, gone = analysis.zeros[step.operands[0]], self._gone(step)
        sizes = [analysis.shape(step.operands[0])[axis] for axis in gone]
        is_empty = any(isinstance(size, int) and size == 0 for size in sizes)
        if not self._keeps_zeros(step) or (is_empty and not self.is_sum):
            return [Zeros.of(False, analysis.shape(x)) for x in step.results]
        along = [own for axis, own in enumerate(zeros.along) if axis not in gone]
        return [Zeros(zeros.all, along) for _ in step.results]

    def _gone(self, step: Step) -> Sequence[int]:
        return tuple(step.params[self.parameter])

    def _keeps_zeros(self, step: Step) -> bool:
        return step.primitive.name not in ("argmax", "argmin")


class ReduceSum(Reduce):
    """A sum over axes: an index that is zero adds nothing."""

    is_sum = True

    def needs(self, step: Step, analysis: Analysis) -> None:
        """The terms that are not zero, nor one number that can be added instead."""
        operand, gone = step.operands[0], self._gone(step)
        if analysis.is_live(step.results[0]):
            filled = fillable(analysis, operand, gone)
            for axis in gone:
                is_zero = analysis.zero_terms(operand, axis, gone)
                if axis == filled:
                    is_zero = is_zero | alike_along(analysis, operand, axis)
                analysis.needs(analysis.axes[operand][axis], is_zero, step)

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Sum what stays, and add what was cut where that is not zero."""
        (total,) = bind(step, operands)
        operand, gone = step.operands[0], self._gone(step)
        axis = fillable(cut.analysis, operand, gone)
        added = None if axis is None else sum_of_cut(cut, operand, axis, gone)
        return [total if added is None else total + added]


class AlongAxis(PrimitiveRule):
    """Results have the operand's axes; along one, every index matters.

    Sorts and cumulative sums.
    """

    def __init__(self, parameter: str = "axis") -> None:
        self._parameter = parameter

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix that axis; all others are the same in all operands."""
        along = step.params[self._parameter]
        joined = list(analysis.axes[step.operands[0]])
        for operand in step.operands:
            own = analysis.axes[operand]
            analysis.fix(own[along], f"{step.primitive.name}, {step.source}")
            joined = [
                analysis.join(*pair, step) for pair in zip(joined, own, strict=True)
            ]
        joined[along] = None
        return [joined for _ in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Sums of zeros are zero; nothing is said of a sort's other operands."""
        if step.primitive.name not in ("cumsum", "cumprod", "cummax", "cummin"):
            return [Zeros.of(False, analysis.shape(x)) for x in step.results]
        zeros = analysis.zeros[step.operands[0]]
        along = list(zeros.along)
        along[step.params[self._parameter]] = np.full_like(
            along[step.params[self._parameter]], zeros.all
        )
        return [Zeros(zeros.all, along)]


class Window(PrimitiveRule):
    """Axes along which a window is one index pass; all others are fixed."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix the axes along which windows lie."""
        (operand, *_), passes = step.operands, self._passes(step)
        axes: list[Axis] = []
        for axis, alone in zip(analysis.axes[operand], passes, strict=True):
            if not alone:
                analysis.fix(axis, f"{step.primitive.name}, {step.source}")
            axes.append(axis if alone else None)
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where the operand is, on axes that pass."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        if not self._sees_values(step):
            return [Zeros.of(False, shape)]
        along = [
            own if alone else np.full(known_size(size), zeros.all)
            for own, alone, size in zip(
                zeros.along, self._passes(step), shape, strict=True
            )
        ]
        return [Zeros(zeros.all, along)]

    def _sees_values(self, step: Step) -> bool:
        """Whether no window lies in the padding alone, where a maximum is infinite."""
        params = step.params
        return step.primitive.name == "reduce_window_sum" or (
            set(params.get("base_dilation") or (1,)) == {1}
            and set(params.get("window_dilation") or (1,)) == {1}
            and all(
                all(isinstance(n, int | np.integer) and n < window for n in padding)
                for window, padding in zip(
                    params["window_dimensions"], params["padding"], strict=True
                )
            )
        )

    def _passes(self, step: Step) -> list[bool]:
        params = step.params
        one = (1,) * len(params["window_dimensions"])
        return [
            # A symbol, of which nothing is known, is not 0 either.
            (window, stride, *padding, base, dilation) == (1, 1, 0, 0, 1, 1)
            for window, stride, padding, base, dilation in zip(
                params["window_dimensions"],
                params["window_strides"] or one,
                params["padding"],
                params.get("base_dilation") or one,
                params.get("window_dilation") or one,
                strict=True,
            )
        ]
