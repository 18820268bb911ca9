"""Primitives that take or write some of the indices of an axis."""

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


class Taken(PrimitiveRule):
    """Each result has some of the indices of the one operand, in order.

    A subclass says which: of each axis a slice, or None for all.
    """

    def taken(self, step: Step, analysis: Analysis) -> list[list[slice | None]]:
        """Of each result and axis the indices that are taken."""
        raise NotImplementedError

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """The units of the indices that are taken."""
        taken = self.taken(step, analysis)
        for parts in taken:
            for axis, part in zip(analysis.axes[step.operands[0]], parts, strict=True):
                if part is not None and not _is_known(part):
                    analysis.fix(axis, f"{step.primitive.name}, {step.source}")
        own = [analysis.units.resolve(x) for x in analysis.axes[step.operands[0]]]
        return [
            [
                axis if part is None or axis is None else axis[part]
                for axis, part in zip(own, parts, strict=True)
            ]
            for parts in taken
        ]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the indices that are taken."""
        zeros = analysis.zeros[step.operands[0]]
        results = []
        for parts, result in zip(self.taken(step, analysis), step.results, strict=True):
            along = [
                own if part is None else _flags_of(own, part, size, zeros.all)
                for own, part, size in zip(
                    zeros.along, parts, analysis.shape(result), strict=True
                )
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


def _is_known(part: slice) -> bool:
    """Whether a slice's ends are numbers, not symbols."""
    return all(isinstance(x, int | None) for x in (part.start, part.stop, part.step))


def _flags_of(own: np.ndarray, part: slice, size: Any, nothing: bool) -> np.ndarray:
    """The flags of the indices that are taken."""
    if _is_known(part) and isinstance(size, int) and len(own[part]) == size:
        return own[part]
    return np.full(known_size(size), nothing)


def _slice(value: jax.Array, axis: int, part: slice) -> jax.Array:
    if part.step is not None and part.step < 0:
        return jax.lax.rev(value, (axis,))
    return jax.lax.slice_in_dim(value, part.start, part.stop, part.step or 1, axis)


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
                else slice(start, limit, stride)
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
    return stride == 1 and start is not None and same(start, 0) and same(limit, size)


def same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)


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
            if same(size, taken):
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
            if same(size, written):
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
