"""Primitives that give values other axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.rules.fills import alike_of_operands
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros


class BroadcastInDim(PrimitiveRule):
    """Axes that are copied keep their units; new ones have new units."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Axes of size 1 that are repeated are new ones."""
        (operand, *_), (result,) = step.operands, step.results
        sizes, shape = analysis.shape(operand), analysis.shape(result)
        axes = analysis.new_axes(shape)
        for axis, place in enumerate(step.params["broadcast_dimensions"]):
            if sizes[axis] is shape[place] or sizes[axis] == shape[place]:
                axes[place] = analysis.axes[operand][axis]
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Where the operand is; on new axes only where all of it is."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        along = list(Zeros.of(zeros.all, shape).along)
        for axis, place in enumerate(step.params["broadcast_dimensions"]):
            if len(zeros.along[axis]) == len(along[place]):
                along[place] = zeros.along[axis]
        return [Zeros(zeros.all, along)]

    def alike(self, step: Step, analysis: Analysis) -> Sequence[np.ndarray] | None:
        """All along new axes, and where the operand is."""
        return alike_of_operands(step, analysis, self.axis_of)

    def axis_of(
        self, step: Step, analysis: Analysis, operand: int, axis: int
    ) -> int | None:
        """The operand's axis that becomes one of the result; None for a new one."""
        places = step.params["broadcast_dimensions"]
        if operand != step.operands[0] or axis not in places:
            return None
        own = places.index(axis)
        size = analysis.shape(operand)[own]
        return None if isinstance(size, int) and size == 1 else own

    def fill(self, step: Step, operands: Sequence[Any], shape: Sequence[Any]) -> Any:
        """The result, of one index along an axis."""
        (result,) = bind(step, operands, shape=tuple(shape))
        return result

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Broadcast to the smaller shape."""
        return bind(step, operands, shape=cut.shape(step.results[0]))


class Reshape(PrimitiveRule):
    """Axes are merged and split, in the smallest blocks of equal size."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Split what can be split, and fix what can't."""
        (operand, *_), (result,) = step.operands, step.results
        sizes, shape = analysis.shape(operand), analysis.shape(result)
        axes: list[Axis] = [None] * len(shape)
        if step.params["dimensions"] is not None or _is_empty(sizes):
            analysis.fix_variable(operand, f"reshape, {step.source}")
            return [axes]
        for old, new in blocks(sizes, shape):
            merged = self._merged(analysis, operand, old, step)
            if not all(isinstance(shape[place], int) for place in new):
                analysis.fix(merged, f"reshape to an unknown size, {step.source}")
                continue
            left = math.prod(sizes[axis] for axis in old) if merged is not None else 0
            for place in new[:-1]:
                left //= max(shape[place], 1) if left else 1
                axes[place], merged = (
                    analysis.units.split(merged, shape[place], left)
                    if merged is not None
                    else (None, None)
                )
            if new:
                axes[new[-1]] = merged
            elif merged is not None:
                analysis.fix(merged, f"reshape, {step.source}")
        return [axes]

    def _merged(
        self, analysis: Analysis, operand: int, block: Sequence[int], step: Step
    ) -> Axis:
        """The axes of a block as one."""
        sizes = [analysis.shape(operand)[axis] for axis in block]
        axes = [analysis.units.resolve(analysis.axes[operand][axis]) for axis in block]
        if all(isinstance(size, int) for size in sizes):
            return analysis.units.merge(axes, sizes)
        if len(block) == 1:
            return None
        for axis in axes:
            analysis.fix(axis, f"reshape of a size that is not known, {step.source}")
        return None

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """A merged index is zero where one of its parts is."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        along = list(Zeros.of(zeros.all, shape).along)
        if _is_empty(shape):
            return [Zeros(zeros.all, along)]
        for old, new in blocks(analysis.shape(step.operands[0]), shape):
            sizes = [shape[place] for place in new]
            if not all(isinstance(size, int) for size in sizes):
                continue
            merged = np.zeros(1, bool)
            for axis in old:
                merged = (merged[:, None] | zeros.along[axis]).ravel()
            if merged.size != math.prod(sizes):
                continue
            table = merged.reshape(sizes)
            for number, place in enumerate(new):
                others = tuple(n for n in range(len(new)) if n != number)
                along[place] = np.asarray(table.all(others))
        return [Zeros(zeros.all, along)]

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Reshape to the smaller shape."""
        return bind(step, operands, new_sizes=cut.shape(step.results[0]))


def blocks(
    sizes: Sequence[Any], shape: Sequence[Any]
) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes, before and after a reshape, of as many elements.

    Axes of size 1 are in no run, nor are axes behind a size that is not known, unless
    it is the same before and after.
    """
    before = [axis for axis, size in enumerate(sizes) if not _is_one(size)]
    after = [axis for axis, size in enumerate(shape) if not _is_one(size)]
    last: list[tuple[list[int], list[int]]] = []
    while before and after and _are_same(sizes[before[-1]], shape[after[-1]]):
        last.insert(0, ([before.pop()], [after.pop()]))
    return [*_blocks(before, after, sizes, shape), *last]


def _blocks(
    before: list[int], after: list[int], sizes: Sequence[Any], shape: Sequence[Any]
) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of these axes, found from the first on."""
    found: list[tuple[list[int], list[int]]] = []
    while before and after:
        old, new = [before.pop(0)], [after.pop(0)]
        left, right = sizes[old[0]], shape[new[0]]
        while not _are_same(left, right):
            if not (isinstance(left, int) and isinstance(right, int)):
                # What follows can't be told apart.
                return [*found, (old + before, new + after)]
            if left < right and before:
                old.append(before.pop(0))
                left = left * sizes[old[-1]]
            elif left > right and after:
                new.append(after.pop(0))
                right = right * shape[new[-1]]
            else:
                return [*found, (old + before, new + after)]
        found.append((old, new))
    return found


def _are_same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _is_empty(sizes: Sequence[Any]) -> bool:
    return any(isinstance(size, int) and size == 0 for size in sizes)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


class Transpose(PrimitiveRule):
    """Axes in another order."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Permute."""
        own = analysis.axes[step.operands[0]]
        return [[own[axis] for axis in step.params["permutation"]]]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Permute."""
        zeros = analysis.zeros[step.operands[0]]
        along = [zeros.along[axis] for axis in step.params["permutation"]]
        return [Zeros(zeros.all, along)]


class Squeeze(PrimitiveRule):
    """Axes of size 1 are left out."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The other axes."""
        return [self._others(step, analysis.axes[step.operands[0]])]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the other axes."""
        zeros = analysis.zeros[step.operands[0]]
        return [Zeros(zeros.all, self._others(step, zeros.along))]

    def _others(self, step: Step, per_axis: Sequence[Any]) -> list[Any]:
        gone = step.params["dimensions"]
        return [own for axis, own in enumerate(per_axis) if axis not in gone]
