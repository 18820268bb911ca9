"""Primitives that sum: an index that adds zero to every sum can go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis, Zeros, known_size
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.rules.fills import alike_along, fillable, sum_of_cut
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis

EXTREMES = (
    *("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin"),
)
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min")


class DotGeneral(PrimitiveRule):
    """Contracted axes are summed over; batch axes are the same in both operands."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join contracted and batch axes; free ones pass."""
        (contracted, batch), (left, right) = self._numbers(step), step.operands
        for one, other in zip(*contracted, strict=True):
            analysis.join(analysis.axes[left][one], analysis.axes[right][other], step)
        axes = [
            analysis.join(analysis.axes[left][one], analysis.axes[right][other], step)
            for one, other in zip(*batch, strict=True)
        ]
        for operand, gone, alike in zip((left, right), contracted, batch, strict=True):
            own = analysis.axes[operand]
            axes += [own[x] for x in range(len(own)) if x not in (*gone, *alike)]
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """A product is zero where one operand is."""
        (contracted, batch), (left, right) = self._numbers(step), step.operands
        one, other = analysis.zeros[left], analysis.zeros[right]
        along = [one.along[x] | other.along[y] for x, y in zip(*batch, strict=True)]
        nothing = one.all or other.all
        for zeros, gone, alike in zip((one, other), contracted, batch, strict=True):
            along += [
                own | nothing
                for axis, own in enumerate(zeros.along)
                if axis not in (*gone, *alike)
            ]
        return [Zeros(nothing, along)]

    def needs(self, step: Step, analysis: Analysis) -> None:
        """The terms of which neither operand is zero."""
        (contracted, _), (left, right) = self._numbers(step), step.operands
        if not analysis.is_live(step.results[0]):
            return
        for x, y in zip(*contracted, strict=True):
            is_zero = analysis.zero_terms(left, x, contracted[0])
            is_zero = is_zero | analysis.zero_terms(right, y, contracted[1])
            analysis.needs(analysis.axes[left][x], is_zero, step)

    def _numbers(self, step: Step) -> Any:
        return step.params["dimension_numbers"]


class Convolution(PrimitiveRule):
    """Input features are summed over, output features are the kernel's.

    With groups, features are pairs of a group and an index in it.
    """

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join input features with the kernel's, group by group."""
        left, right = step.operands
        source = f"conv_general_dilated, {step.source}"
        image, kernel = analysis.axes[left], analysis.axes[right]
        numbers, groups = (
            step.params["dimension_numbers"],
            step.params["feature_group_count"],
        )
        axes: list[Axis] = [None] * len(image)
        if step.params["batch_group_count"] != 1:
            analysis.fix_variable(left, source)
            analysis.fix_variable(right, source)
            return [axes]
        for axes_of, spec in ((image, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
            for axis in spec[2:]:
                analysis.fix(axes_of[axis], source)
        inputs = image[numbers.lhs_spec[1]]
        outputs, within = (kernel[axis] for axis in numbers.rhs_spec[:2])
        if groups == 1:
            analysis.join(inputs, within, step)
        else:
            features = analysis.shape(left)[numbers.lhs_spec[1]]
            filters = analysis.shape(right)[numbers.rhs_spec[0]]
            of_input, in_group = analysis.units.split(
                inputs, groups, features // groups
            )
            of_output, own = analysis.units.split(outputs, groups, filters // groups)
            if features == groups:
                within = None  # one input a group: its index there is always 0
            analysis.join(in_group, within, step)
            alike = analysis.join(of_input, of_output, step)
            outputs = analysis.units.merge(
                [analysis.units.resolve(alike), analysis.units.resolve(own)],
                [groups, filters // groups],
            )
        axes[numbers.out_spec[0]] = image[numbers.lhs_spec[0]]
        axes[numbers.out_spec[1]] = outputs
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Output features are zero where the kernel is, or all inputs of the group."""
        left, right = step.operands
        one, other = analysis.zeros[left], analysis.zeros[right]
        numbers, groups = (
            step.params["dimension_numbers"],
            step.params["feature_group_count"],
        )
        shape = analysis.shape(step.results[0])
        if step.params["batch_group_count"] != 1:
            return [Zeros.of(False, shape)]
        inputs = one.along[numbers.lhs_spec[1]]
        outputs = other.along[numbers.rhs_spec[0]]
        by_group = inputs.reshape(groups, -1)
        along = list(Zeros.of(one.all or other.all, shape).along)
        along[numbers.out_spec[0]] = one.along[numbers.lhs_spec[0]]
        along[numbers.out_spec[1]] = outputs | np.repeat(
            by_group.all(1), len(outputs) // groups
        )
        return [Zeros(one.all or other.all, along)]

    def needs(self, step: Step, analysis: Analysis) -> None:
        """The input features that are not zero, nor the kernel there."""
        left, right = step.operands
        numbers, groups = (
            step.params["dimension_numbers"],
            step.params["feature_group_count"],
        )
        is_plain = step.params["batch_group_count"] == 1  # else all is fixed
        if not (is_plain and analysis.is_live(step.results[0])):
            return
        features = numbers.lhs_spec[1]
        inputs = analysis.zeros[left].along[features]
        within = numbers.rhs_spec[1]
        summed = (within, *numbers.rhs_spec[2:])
        if groups == 1:
            is_zero = inputs | analysis.zero_terms(right, within, summed)
            analysis.needs(analysis.axes[left][features], is_zero, step)
        elif analysis.shape(right)[within] > 1:
            by_group = inputs.reshape(groups, -1).all(0)
            is_zero = by_group | analysis.zeros[right].along[within]
            analysis.needs(analysis.axes[right][within], is_zero, step)

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Convolve with as many groups as stay."""
        del cut
        groups, numbers = (
            step.params["feature_group_count"],
            step.params["dimension_numbers"],
        )
        if groups == 1:
            return bind(step, operands)
        features = operands[0].shape[numbers.lhs_spec[1]]
        in_group = operands[1].shape[numbers.rhs_spec[1]]
        return bind(step, operands, feature_group_count=features // in_group)


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
                max(map(int, padding)) < window
                for window, padding in zip(
                    params["window_dimensions"], params["padding"], strict=True
                )
            )
        )

    def _passes(self, step: Step) -> list[bool]:
        params = step.params
        one = (1,) * len(params["window_dimensions"])
        return [
            (window, stride, *map(int, padding), base, dilation) == (1, 1, 0, 0, 1, 1)
            for window, stride, padding, base, dilation in zip(
                params["window_dimensions"],
                params["window_strides"] or one,
                params["padding"],
                params.get("base_dilation") or one,
                params.get("window_dilation") or one,
                strict=True,
            )
        ]
