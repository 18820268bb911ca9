"""Primitives that read or write at indices that are computed: gather and scatter."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.rules.slicing import same
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros

SCATTERS = (
    *("scatter", "scatter-add", "scatter-sub", "scatter-mul"),
    *("scatter-min", "scatter-max"),
)


class Gather(PrimitiveRule):
    """Axes that are taken whole pass; all others are fixed."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Those of the operand that are taken whole."""
        operand, indices = step.operands
        analysis.fix_variable(indices, f"the indices of gather, {step.source}")
        axes: list[Axis] = [None] * len(analysis.shape(step.results[0]))
        passing = self._passing(step, analysis)
        for axis, own in enumerate(analysis.axes[operand]):
            if axis in passing:
                axes[passing[axis]] = own
            else:
                analysis.fix(own, f"gather, {step.source}")
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of axes that are taken whole."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        along = list(Zeros.of(False, shape).along)
        fill = step.params["fill_value"]
        # An index out of range gives NaN, in the features that stay as in the others.
        if fill is None or np.isnan(fill) or fill == 0:
            for axis, place in self._passing(step, analysis).items():
                along[place] = zeros.along[axis]
        return [Zeros(False, along)]

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Take the smaller axes whole."""
        sizes = list(step.params["slice_sizes"])
        shape = cut.shape(step.operands[0])
        for axis in self._passing(step, cut.analysis):
            sizes[axis] = shape[axis]
        return bind(step, operands, slice_sizes=tuple(sizes))

    def _passing(self, step: Step, analysis: Analysis) -> dict[int, int]:
        """The axes that are taken whole, and which of the result they are."""
        numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        shape = analysis.shape(step.operands[0])
        return {
            axis: place
            for axis, place in _window(shape, gone, numbers.offset_dims)
            if same(sizes[axis], shape[axis])
        }


class Scatter(PrimitiveRule):
    """Axes that are written whole pass; all others are fixed."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join the operand's axes that are written whole with those of the updates."""
        operand, indices, updates = step.operands
        analysis.fix_variable(indices, f"the indices of scatter, {step.source}")
        passing = self._passing(step, analysis)
        axes: list[Axis] = []
        for axis, own in enumerate(analysis.axes[operand]):
            if axis in passing:
                other = analysis.axes[updates][passing[axis]]
                axes.append(analysis.join(own, other, step))
            else:
                analysis.fix(own, f"scatter, {step.source}")
                axes.append(None)
        for place, other in enumerate(analysis.axes[updates]):
            if place not in passing.values():
                analysis.fix(other, f"scatter, {step.source}")
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where both are, along axes that are written whole."""
        operand, _, updates = (analysis.zeros[x] for x in step.operands)
        if not self._keeps_zeros(step, analysis):
            return [Zeros.of(False, analysis.shape(step.results[0]))]
        along = list(Zeros.of(False, analysis.shape(step.results[0])).along)
        for axis, place in self._passing(step, analysis).items():
            along[axis] = operand.along[axis] & updates.along[place]
        return [Zeros(operand.all and updates.all, along)]

    def _keeps_zeros(self, step: Step, analysis: Analysis) -> bool:
        """Whether zeros of both make zero; `at[].apply` may do otherwise."""
        update = step.params["update_jaxpr"]
        if update is None:
            return True
        zero = np.zeros((), analysis.types[step.operands[0]].dtype)
        with jax.ensure_compile_time_eval():
            consts = step.params["update_consts"]
            (written,) = jax.core.eval_jaxpr(update, consts, zero, zero)
            return not np.any(written)

    def _passing(self, step: Step, analysis: Analysis) -> dict[int, int]:
        """The axes that are written whole, and which of the updates they are."""
        numbers = step.params["dimension_numbers"]
        gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
        shape = analysis.shape(step.operands[0])
        written = analysis.shape(step.operands[2])
        return {
            axis: place
            for axis, place in _window(shape, gone, numbers.update_window_dims)
            if same(written[place], shape[axis])
            and axis not in numbers.scatter_dims_to_operand_dims
        }


def _window(
    shape: Sequence[Any], gone: Collection[int], places: Sequence[int]
) -> list[tuple[int, int]]:
    """The axes that a window has, each with its place in what is read or written."""
    axes = [axis for axis in range(len(shape)) if axis not in gone]
    return list(zip(axes, places, strict=True))
