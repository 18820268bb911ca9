"""Primitives that sum: an index that adds zero to every sum can go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros


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
