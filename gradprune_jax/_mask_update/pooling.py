"""Pooling: the blocks of a leaf, each reduced to one number on every layout alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._geometry import unit_shape
from gradprune_jax._structures import Shape
from gradprune_jax._top_k import (
    LONGEST_RUN,
    Reduction,
    Shard,
    add_up,
    divisors,
    reduce_runs,
    run_sizes,
    split_axis,
)


class LocalBlocks:
    """The blocks of a leaf's local piece, and how to reduce each to one number."""

    def __init__(self, block: Shape, shard: Shard, local_shape: Shape) -> None:
        axes = range(len(block))
        spans = [
            length >= size for length, size in zip(block, shard.shape, strict=True)
        ]
        self.whole_block = block
        self.whole_shape = shard.shape
        self.block = tuple(
            max(size, 1) if spanned else length
            for length, size, spanned in zip(block, local_shape, spans, strict=True)
        )
        self.units = unit_shape(local_shape, self.block)
        self.split_axes = tuple(
            sorted(n for axis in axes if spans[axis] for n in shard.axis_names[axis])
        )

    def maximum(self, numbers: jax.Array) -> jax.Array:
        """The largest number of every block."""
        largest = self._reduce(lambda array, axes: jnp.max(array, axes), numbers)
        return jax.lax.pmax(largest, self.split_axes) if self.split_axes else largest

    def sum(self, numbers: jax.Array) -> jax.Array:
        """The sum of every block."""
        total = self._reduce(add_up, numbers)
        return jax.lax.psum(total, self.split_axes) if self.split_axes else total

    def sizes(self) -> jax.Array:
        """How many weights each block has, the ragged ones fewer: uint32."""
        sizes = jnp.ones([1] * len(self.units), jnp.uint32)
        for axis, units in enumerate(self.units):
            length, whole = self.whole_block[axis], self.whole_shape[axis]
            along = np.full(units, min(length, whole), np.uint32)
            if whole % length and units:
                along[-1] = whole % length if length < whole else whole
            others = [other for other in range(len(self.units)) if other != axis]
            if length > 1:
                sizes = sizes * jnp.expand_dims(jnp.asarray(along), others)
        return sizes

    def _reduce(self, reduce: Reduction, numbers: jax.Array) -> jax.Array:
        """Reduces every block of an array to one number, in the shape of the units."""
        edges = [
            (0, -size % length)
            for size, length in zip(numbers.shape, self.block, strict=True)
        ]
        if any(after for _, after in edges):
            numbers = jnp.pad(numbers, edges)
        groups: dict[int, list[int]] = {}
        inside: list[int] = []
        for axis in reversed(range(numbers.ndim)):
            length = self.block[axis]
            if length == 1:
                continue
            spans = self.units[axis] == 1
            sizes = run_sizes(numbers, axis) if spans else divisors(length, LONGEST_RUN)
            if not spans:
                numbers = split_axis(numbers, axis, length)
                inside = [other + 1 for other in inside]
                groups = {other + 1: group for other, group in groups.items()}
            inside.append(axis + (not spans))
            if length > LONGEST_RUN and sizes:
                groups[inside[-1]] = [sizes[-1]]
        if groups:
            numbers = reduce_runs(reduce, numbers, groups)
            # Signed, or XLA would merge this reduction with the next. No bit is lost:
            # keys have no sign, and sums of signed integers wrap like unsigned ones.
            numbers = _with_sign(numbers, "int")
        reduced = reduce(numbers, tuple(inside)) if inside else numbers
        if groups:
            reduced = _with_sign(reduced, "uint")
        spanned = [
            axis
            for axis, (length, units) in enumerate(
                zip(self.block, self.units, strict=True)
            )
            if length > 1 and units == 1
        ]
        return jnp.expand_dims(reduced, spanned)


def _with_sign(numbers: jax.Array, kind: str) -> jax.Array:
    """The same bits as signed or unsigned integers."""
    dtype = np.dtype(f"{kind}{8 * numbers.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(numbers, dtype)
