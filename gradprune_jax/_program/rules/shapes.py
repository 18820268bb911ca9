"""Primitives that move values about: every index of a result is one of an operand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis, Zeros, known_size
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis


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
        if step.params["dimensions"] is not None:
            analysis.fix_variable(operand, f"reshape with dimensions, {step.source}")
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
    found: list[tuple[list[int], list[int]]] = []
    before = [axis for axis, size in enumerate(sizes) if not _is_one(size)]
    after = [axis for axis, size in enumerate(shape) if not _is_one(size)]
    while before and after:
        old, new = [before.pop(0)], [after.pop(0)]
        left, right = sizes[old[0]], shape[new[0]]
        while not (left is right or left == right):
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


class Taken(PrimitiveRule):
    """Each result has some of the indices of the one operand, in order.

    A subclass says which: of each axis a slice, or None for all.
    """

    def taken(self, step: Step, analysis: Analysis) -> list[list[slice | None]]:
        """Of each result and axis the indices that are taken."""
        raise NotImplementedError

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The units of the indices that are taken."""
        own = [analysis.units.resolve(x) for x in analysis.axes[step.operands[0]]]
        return [
            [
                axis if part is None or axis is None else axis[part]
                for axis, part in zip(own, parts, strict=True)
            ]
            for parts in self.taken(step, analysis)
        ]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the indices that are taken."""
        zeros = analysis.zeros[step.operands[0]]
        results = []
        for parts in self.taken(step, analysis):
            along = [
                own if part is None else own[part]
                for own, part in zip(zeros.along, parts, strict=True)
            ]
            results.append(Zeros(zeros.all, along))
        return results

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Take those that stay, by their places among those that stay."""
        own = cut.analysis.axes[step.operands[0]]
        results = []
        for parts in self.taken(step, cut.analysis):
            value = operands[0]
            for axis, part in enumerate(parts):
                stays = cut.stays(own[axis])
                if part is None:
                    continue
                if stays is None:
                    value = _slice(value, axis, part)
                    continue
                places = (np.cumsum(stays) - 1)[part][stays[part]]
                value = _take(value, axis, places)
            results.append(value)
        return results


def _slice(value: jax.Array, axis: int, part: slice) -> jax.Array:
    size = value.shape[axis]
    start, stop, step = part.indices(size)
    if step < 0:
        return jax.lax.rev(value, (axis,))
    return jax.lax.slice_in_dim(value, start, stop, step, axis)


def _take(value: jax.Array, axis: int, places: np.ndarray) -> jax.Array:
    """The elements at some places of an axis; a slice where they are neighbours."""
    if places.size and (np.diff(places) == 1).all():
        first = int(places[0])
        return jax.lax.slice_in_dim(value, first, first + places.size, axis=axis)
    return jax.numpy.take(value, places, axis=axis)


class Slice(Taken):
    """Slices from start to limit."""

    def taken(self, step: Step, analysis: Analysis) -> list[list[slice | None]]:
        """Whole axes, or from start to limit."""
        params, sizes = step.params, analysis.shape(step.operands[0])
        strides = params["strides"] or [1] * len(sizes)
        return [
            [
                None
                if _is_whole(start, limit, stride, size)
                else _part(start, limit, stride)
                for start, limit, stride, size in zip(
                    params["start_indices"],
                    params["limit_indices"],
                    strides,
                    sizes,
                    strict=True,
                )
            ]
        ]


def _is_whole(start: Any, limit: Any, stride: Any, size: Any) -> bool:
    return stride == 1 and start is not None and _same(start, 0) and _same(limit, size)


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


def _part(start: Any, limit: Any, stride: Any) -> slice:
    return slice(start, limit, stride)


class Split(Taken):
    """Pieces of one axis."""

    def taken(self, step: Step, analysis: Analysis) -> list[list[slice | None]]:
        """One piece after the other."""
        ends = np.cumsum([0, *map(int, step.params["sizes"])])
        results = []
        for start, limit in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            parts: list[slice | None] = [None] * len(analysis.shape(step.operands[0]))
            parts[step.params["axis"]] = slice(start, limit)
            results.append(parts)
        return results


class Reverse(Taken):
    """Axes from the last index to the first."""

    def taken(self, step: Step, analysis: Analysis) -> list[list[slice | None]]:
        """All indices, backwards."""
        backwards = slice(None, None, -1)
        axes = range(len(analysis.shape(step.operands[0])))
        return [[backwards if x in step.params["dimensions"] else None for x in axes]]


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
        along = []
        for place in range(len(analysis.shape(step.results[0]))):
            own = [zeros.along[place] for zeros in operands]
            along.append(
                np.concatenate(own)
                if place == step.params["dimension"]
                else np.logical_and.reduce(own)
            )
        return [Zeros(all(zeros.all for zeros in operands), along)]


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


class Pad(PrimitiveRule):
    """Indices of no unit before and after those of the operand."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix axes that are cut, or padded between indices."""
        axes: list[Axis] = []
        operand = step.operands[0]
        for axis, size, (low, high, interior) in zip(
            analysis.axes[operand],
            analysis.shape(operand),
            step.params["padding_config"],
            strict=True,
        ):
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


class WholeAxes(PrimitiveRule):
    """Axes that are taken whole pass, in the order of operand and result."""

    size_parameter = "slice_sizes"

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix axes of which some indices are taken."""
        operand = step.operands[0]
        axes: list[Axis] = []
        for axis, size, taken in zip(
            analysis.axes[operand],
            analysis.shape(operand),
            analysis.shape(step.results[0]),
            strict=True,
        ):
            if _same(size, taken):
                axes.append(axis)
            else:
                analysis.fix(axis, f"{step.primitive.name}, {step.source}")
                axes.append(None)
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of axes that are taken whole."""
        zeros, shape = analysis.zeros[step.operands[0]], analysis.shape(step.results[0])
        along = [
            own if len(own) == known_size(size) else np.full(known_size(size), False)
            for own, size in zip(zeros.along, shape, strict=True)
        ]
        return [Zeros(zeros.all, along)]

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Take the smaller axes whole."""
        sizes = cut.shape(step.results[0])
        return bind(step, operands, **{self.size_parameter: sizes})


class DynamicUpdateSlice(PrimitiveRule):
    """Axes that are written whole are the same in both."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix axes of which some indices are written."""
        operand, update = step.operands[:2]
        axes: list[Axis] = []
        for place, (size, written) in enumerate(
            zip(analysis.shape(operand), analysis.shape(update), strict=True)
        ):
            own, other = analysis.axes[operand][place], analysis.axes[update][place]
            if _same(size, written):
                axes.append(analysis.join(own, other, step))
                continue
            for axis in (own, other):
                analysis.fix(axis, f"dynamic_update_slice, {step.source}")
            axes.append(None)
        return [axes]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where both are."""
        operand, update = (analysis.zeros[x] for x in step.operands[:2])
        along = [
            own & other if len(own) == len(other) else np.zeros_like(own)
            for own, other in zip(operand.along, update.along, strict=True)
        ]
        return [Zeros(operand.all and update.all, along)]


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
        kept = [axis for axis in range(len(shape)) if axis not in gone]
        return {
            axis: place
            for axis, place in zip(kept, numbers.offset_dims, strict=True)
            if _same(sizes[axis], shape[axis])
        }


class Identity(PrimitiveRule):
    """Each result is an operand."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The same."""
        return [analysis.axes[operand] for operand in step.operands]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """The same."""
        return [analysis.zeros[operand] for operand in step.operands]
