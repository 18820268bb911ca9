"""Primitives that put several values together, or one value several times."""

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
from gradprune_jax._program.zeros import Zeros, known_size


class Concatenate(PrimitiveRule):
    """The axes of the operands, one after the other."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The indices of each operand keep their units."""
        dimension, shape = step.params["dimension"], analysis.shape(step.results[0])
        axes: list[Axis] = []
        for place in range(len(shape)):
            own = [analysis.axes[operand][place] for operand in step.operands]
            sizes = [analysis.shape(operand)[place] for operand in step.operands]
            if place == dimension:
                axes.append(_chained(analysis, own, sizes, step.source))
                continue
            joined = own[0]
            for other in own[1:]:
                joined = analysis.join(joined, other, step)
            axes.append(joined)
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of each operand, one after the other."""
        operands = [analysis.zeros[operand] for operand in step.operands]
        nothing = all(zeros.all for zeros in operands)
        along = []
        for place, size in enumerate(analysis.shape(step.results[0])):
            own = [zeros.along[place] for zeros in operands]
            if place != step.params["dimension"]:
                along.append(np.logical_and.reduce(own))
            elif isinstance(size, int):
                along.append(np.concatenate(own))
            else:
                along.append(np.full(1, nothing))
        return [Zeros(nothing, along)]


def _chained(
    analysis: Analysis, axes: Sequence[Axis], sizes: Sequence[Any], source: str
) -> Axis:
    """One axis of several, one after the other."""
    resolved = [analysis.units.resolve(axis) for axis in axes]
    if all(axis is None for axis in resolved):
        return None
    if not all(isinstance(size, int) for size in sizes):
        for axis in resolved:
            analysis.fix(axis, f"concatenate of a size that is not known, {source}")
        return None
    width = max(axis.shape[1] for axis in resolved if axis is not None)
    chained = np.full((sum(sizes), width), -1)
    start = 0
    for axis, size in zip(resolved, sizes, strict=True):
        if axis is not None:
            chained[start : start + size, : axis.shape[1]] = axis
        start += size
    return chained


class Stack(PrimitiveRule):
    """The operands along a new axis, which is fixed."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join the axes of all operands."""
        joined = list(analysis.axes[step.operands[0]])
        for operand in step.operands[1:]:
            other = analysis.axes[operand]
            joined = [
                analysis.join(*pair, step) for pair in zip(joined, other, strict=True)
            ]
        joined.insert(step.params["axis"], None)
        return [joined]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where all operands are."""
        operands = [analysis.zeros[operand] for operand in step.operands]
        along = [
            np.logical_and.reduce(own)
            for own in zip(*(zeros.along for zeros in operands), strict=True)
        ]
        along.insert(step.params["axis"], np.array([zeros.all for zeros in operands]))
        return [Zeros(all(zeros.all for zeros in operands), along)]


class Unstack(PrimitiveRule):
    """The pieces along an axis, which is fixed."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The other axes, alike in all pieces."""
        (operand,), axis = step.operands, step.params["axis"]
        analysis.fix(analysis.axes[operand][axis], f"unstack, {step.source}")
        others = [x for place, x in enumerate(analysis.axes[operand]) if place != axis]
        return [others for _ in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the other axes."""
        zeros, axis = analysis.zeros[step.operands[0]], step.params["axis"]
        others = [x for place, x in enumerate(zeros.along) if place != axis]
        return [Zeros(zeros.all, others) for _ in step.results]


class Tile(PrimitiveRule):
    """Axes that are repeated, all indices after all."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Every repetition has the same units."""
        own = map(analysis.units.resolve, analysis.axes[step.operands[0]])
        return [
            [
                axis if axis is None else np.tile(axis, (times, 1))
                for axis, times in zip(own, step.params["reps"], strict=True)
            ]
        ]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Every repetition has the same zeros."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        along = [
            np.tile(own, times) if isinstance(size, int) else own
            for own, times, size in zip(
                zeros.along, step.params["reps"], shape, strict=True
            )
        ]
        return [Zeros(zeros.all, along)]


class Pad(PrimitiveRule):
    """Indices of no unit before and after those of the operand."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix axes that are cut, or padded between indices."""
        axes: list[Axis] = []
        operand = step.operands[0]
        for axis, size, padding in zip(
            analysis.axes[operand],
            analysis.shape(operand),
            step.params["padding_config"],
            strict=True,
        ):
            low, high, interior = map(int, padding)
            if axis is None or (low == high == interior == 0):
                axes.append(axis)
            elif low < 0 or high < 0 or interior:
                analysis.fix(axis, f"pad, {step.source}")
                axes.append(None)
            else:
                axes.append(
                    _chained(
                        analysis, [None, axis, None], [low, size, high], step.source
                    )
                )
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the operand, where what is padded is zero."""
        operand, value = (analysis.zeros[x] for x in step.operands)
        shape = analysis.shape(step.results[0])
        along = []
        for axis, (low, high, interior) in enumerate(step.params["padding_config"]):
            own = operand.along[axis]
            is_simple = min(low, high) >= 0 and not interior
            if not is_simple or not isinstance(shape[axis], int):
                along.append(np.zeros(known_size(shape[axis]), bool))
                continue
            if not value.all and any(
                padding != (0, 0, 0)
                for other, padding in enumerate(step.params["padding_config"])
                if other != axis
            ):
                own = np.zeros_like(own)
            along.append(np.pad(own, (low, high), constant_values=value.all))
        return [Zeros(operand.all and value.all, along)]


class Identity(PrimitiveRule):
    """Each result is an operand."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The same."""
        return [analysis.axes[operand] for operand in step.operands]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """The same."""
        return [analysis.zeros[operand] for operand in step.operands]


class Placement(Identity):
    """The operand, laid out over devices; one that was cut is laid out as it comes."""

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Lay out what has the old shape: a smaller one may not divide by the mesh."""
        (operand,) = operands
        if operand.shape == tuple(cut.analysis.shape(step.operands[0])):
            return bind(step, operands)
        return [operand]
