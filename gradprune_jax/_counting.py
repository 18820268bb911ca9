"""Counting: how many units of each slice are marked, all that selection asks of data.

A count is an integer reduction, so its result does not depend on the order of
summation: not on fusion, not on the layout, not on the number of devices. On a mesh
XLA adds the shards' counts by one all-reduce of a few integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gradprune_jax._shards import Shard
from gradprune_jax._structures import Structure, largest_key


class Units(NamedTuple):
    """The units of one leaf, as selection sees them.

    Attributes:
      weights: the leaf, or its local piece.
      mask: bool of its shape; pruned weights rank as zeros.
      first: bool of the units' shape, units to keep before all others; or None.
      last_index: the last flat index of a slice, uint32 scalar.
      structure: how weights form units.
      dtype: the floating dtype in which magnitudes are ranked.
      stack_axis: the axis whose slices are ranked apart, or None.
      shard: where the local units lie among those of the whole leaf.
    """

    weights: jax.Array
    mask: jax.Array
    first: jax.Array | None
    last_index: jax.Array
    structure: Structure
    dtype: Any
    stack_axis: int | None
    shard: Shard

    @classmethod
    def of_leaf(
        cls,
        weights: jax.Array,
        mask: jax.Array,
        *,
        structure: Structure,
        dtype: Any,
        stack_axis: int | None,
        shard: Shard,
    ) -> Units:
        """The units of one leaf, none of them kept before others."""
        units = cls(
            weights, mask, None, jnp.uint32(0), structure, dtype, stack_axis, shard
        )
        return units._replace(last_index=jnp.uint32(max(units.slice_size, 1) - 1))

    @property
    def slices(self) -> int:
        """The number of slices of the whole leaf that are ranked apart."""
        return 1 if self.stack_axis is None else self.shard.shape[self.stack_axis]

    @property
    def slice_size(self) -> int:
        """The number of units in one slice of the whole leaf."""
        return math.prod(
            size
            for axis, size in enumerate(self.shard.shape)
            if axis != self.stack_axis
        )

    def keys(self) -> jax.Array:
        """The rank of every unit as an unsigned integer."""
        keys = self.structure.unit_keys(self.weights, self.mask, self.dtype)
        if self.first is None:
            return keys
        above_all = np.asarray(largest_key(self.dtype) + 1, keys.dtype)
        return jnp.where(self.first, above_all, keys)

    def reversed_index(self) -> jax.Array:
        """The last flat index of the slice minus the unit's own: uint32.

        A lower index is a larger number, so ties too are broken by a search for the
        largest threshold.
        """
        local_shape = self.structure.unit_shape(self.weights.shape)
        index = jnp.expand_dims(self.last_index, range(len(local_shape)))
        stride = 1
        for axis in reversed(range(len(local_shape))):
            if axis != self.stack_axis:
                position = self.shard.positions(axis, local_shape[axis]) * stride
                index -= jnp.expand_dims(position, _others(axis, len(local_shape)))
                stride *= self.shard.shape[axis]
        return index

    def spread(self, per_slice: jax.Array) -> jax.Array:
        """One number for each slice of the whole leaf, made to broadcast over units."""
        axis = self.stack_axis
        if axis is None:
            return per_slice.reshape(())
        if self.shard.axis_names[axis]:
            size = self.weights.shape[axis]
            start = self.shard.offset(axis, size)
            per_slice = jax.lax.dynamic_slice_in_dim(per_slice, start, size)
        return jnp.expand_dims(per_slice, _others(axis, self.weights.ndim))

    def count_pair(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """How many local units of each slice two markings mark: uint32 [2, slices]."""
        axis = self.stack_axis
        axes = tuple(range(one.ndim)) if axis is None else _others(axis, one.ndim)
        counts = jnp.stack(_sum_pair(one, other, axes))
        if axis is None:
            return counts.reshape(2, 1)
        if any(jax.typeof(counts).sharding.spec):  # in explicit sharding mode alone
            counts = jax.sharding.reshard(counts, PartitionSpec(None, None))
        if not self.shard.axis_names[axis]:
            return counts
        start = self.shard.offset(axis, counts.shape[1])
        elsewhere = jnp.zeros_like(counts, shape=(2, self.slices))
        return jax.lax.dynamic_update_slice_in_dim(elsewhere, counts, start, axis=1)


# Which units of a leaf are marked, given thresholds that broadcast over them.
Marker = Callable[..., jax.Array]


def mark(units: Sequence[Units], marker: Marker, *thresholds: jax.Array) -> list[Any]:
    """Marks the units of every leaf by thresholds, one a slice.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      marker: ``(leaf, *thresholds) -> bool`` of the units' shape.
      *thresholds: unsigned ``[segments]`` each.

    Returns:
      For each leaf, bool of its units' shape.
    """
    ends = np.cumsum([leaf.slices for leaf in units])
    return [
        marker(leaf, *(leaf.spread(t[end - leaf.slices : end]) for t in thresholds))
        for leaf, end in zip(units, ends, strict=True)
    ]


def count_pairs(
    units: Sequence[Units], marker: Marker, *thresholds: jax.Array
) -> jax.Array:
    """How many units of every segment are marked, by two probes in one read.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      marker: ``(leaf, *thresholds) -> bool`` of the units' shape.
      *thresholds: unsigned ``[2, segments]`` each.

    Returns:
      uint32 ``[2, segments]``, of whole leaves.
    """
    ends = np.cumsum([leaf.slices for leaf in units])
    local = [
        _count_leaf(leaf, marker, [t[:, end - leaf.slices : end] for t in thresholds])
        for leaf, end in zip(units, ends, strict=True)
    ]
    return _sum_over_mesh(units, local)


def _count_leaf(
    leaf: Units, marker: Marker, thresholds: Sequence[jax.Array]
) -> jax.Array:
    """The counts of one leaf's local piece: uint32 [2, slices]."""
    # Without the barrier XLA moves keys and indices out of the search's loop, and
    # writes and reads arrays as large as the weights.
    weights, mask, first, last_index, thresholds = jax.lax.optimization_barrier(
        (leaf.weights, leaf.mask, leaf.first, leaf.last_index, list(thresholds))
    )
    pinned = leaf._replace(
        weights=weights, mask=mask, first=first, last_index=last_index
    )
    one, other = (
        marker(pinned, *map(pinned.spread, probe))
        for probe in zip(*thresholds, strict=True)
    )
    return pinned.count_pair(one, other)


def _sum_pair(
    one: jax.Array, other: jax.Array, axes: tuple[int, ...]
) -> list[jax.Array]:
    """The sums of two bool arrays over `axes`, uint32, in one read of their source.

    Both are packed into the halves of one integer, and summed in groups of at most 32
    along each axis, which overflows neither half and which XLA fuses with whatever
    makes the bools; a sum over a long axis would first write its operand to memory, at
    four bytes a unit. What is left to sum is shorter by the product of the groups.
    """
    groups = _groups(one, axes)
    if not groups:
        return [jnp.sum(marked, axes, dtype=jnp.uint32) for marked in (one, other)]
    shape: list[int] = []
    grouped: list[int] = []
    for axis, size in enumerate(one.shape):
        if axis in groups:
            shape += [size // groups[axis], groups[axis]]
            grouped.append(len(shape) - 1)
        else:
            shape.append(size)
    packed = one.astype(jnp.uint32) | (other.astype(jnp.uint32) << 16)
    sums = packed.reshape(shape).sum(grouped, dtype=jnp.uint32)
    # As signed integers, or XLA would merge the sums before with those that follow.
    sums = jax.lax.bitcast_convert_type(sums, jnp.int32)
    halves = (sums & 0xFFFF, sums >> 16)
    return [jnp.sum(half, axes, dtype=jnp.int32).astype(jnp.uint32) for half in halves]


def _groups(marked: jax.Array, axes: tuple[int, ...]) -> dict[int, int]:
    """The axes to sum in groups, and the size of each group; none for small arrays.

    Devices split an axis by powers of two. So a group takes as few factors of two from
    its axis as may be, and no layout has to be gathered. Groups are long where units
    are neighbours in memory, along the last axis, and short across.
    """
    if marked.size < 2**15:
        return {}
    split = jax.typeof(marked).sharding.spec  # known in explicit sharding mode alone
    groups: dict[int, int] = {}
    for axis in reversed(axes):
        length = marked.shape[axis]
        longest = 32 if axis == axes[-1] else 12
        sizes = [size for size in range(8, longest + 1) if length % size == 0]
        overflows = math.prod(groups.values()) * longest >= 2**15
        if sizes and not split[axis] and not overflows:
            # Of groups that leave the same factors of two, the longest comes last.
            sizes.sort(key=lambda size: _factors_of_two(length // size))
            groups[axis] = sizes[-1]
    return groups


def _factors_of_two(number: int) -> int:
    """How often two divides a positive number."""
    return (number & -number).bit_length() - 1


def _sum_over_mesh(units: Sequence[Units], counts: Sequence[jax.Array]) -> jax.Array:
    """The counts of whole leaves [2, segments] from those of local pieces.

    Each leaf's counts are summed over the mesh axes that split it and over no others,
    by one all-reduce for each set of axes. Under `jit` and `pmap` leaves are whole.
    """
    split_axes = [leaf.shard.split_axes for leaf in units]
    totals = list(counts)
    for axes in sorted(set(split_axes) - {()}):
        members = [i for i, names in enumerate(split_axes) if names == axes]
        together = jnp.concatenate([counts[i] for i in members], axis=-1)
        ends = np.cumsum([units[i].slices for i in members])
        parts = jnp.split(jax.lax.psum(together, axes), ends[:-1], axis=-1)
        for i, part in zip(members, parts, strict=True):
            totals[i] = part
    return jnp.concatenate(totals, axis=-1)


def _others(axis: int, ndim: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(other for other in range(ndim) if other != axis)
