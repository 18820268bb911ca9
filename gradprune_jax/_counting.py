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
      structure: how weights form units.
      dtype: the floating dtype in which magnitudes are ranked.
      stack_axis: the axis whose slices are ranked apart, or None.
      shard: where the local units lie among those of the whole leaf.
    """

    weights: jax.Array
    mask: jax.Array
    first: jax.Array | None
    structure: Structure
    dtype: Any
    stack_axis: int | None
    shard: Shard

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
        index = jnp.zeros((1,) * len(local_shape), jnp.uint32)
        stride = 1
        for axis in reversed(range(len(local_shape))):
            if axis != self.stack_axis:
                position = self.shard.positions(axis, local_shape[axis]) * stride
                index += jnp.expand_dims(position, _others(axis, len(local_shape)))
                stride *= self.shard.shape[axis]
        return jnp.uint32(max(self.slice_size, 1) - 1) - index

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

    def count(self, marked: jax.Array) -> jax.Array:
        """How many local units of each slice of the whole leaf are marked: uint32."""
        axis = self.stack_axis
        if axis is None:
            return jnp.sum(marked, dtype=jnp.uint32).reshape(1)
        counts = jnp.sum(marked, axis=_others(axis, marked.ndim), dtype=jnp.uint32)
        if any(jax.typeof(counts).sharding.spec):  # in explicit sharding mode alone
            counts = jax.sharding.reshard(counts, PartitionSpec(None))
        if not self.shard.axis_names[axis]:
            return counts
        start = self.shard.offset(axis, counts.size)
        elsewhere = jnp.zeros_like(counts, shape=(self.slices,))
        return jax.lax.dynamic_update_slice_in_dim(elsewhere, counts, start, axis=0)


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


def count(units: Sequence[Units], marker: Marker, *thresholds: jax.Array) -> jax.Array:
    """How many units of every segment are marked, for several probes in one read.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      marker: ``(leaf, *thresholds) -> bool`` of the units' shape.
      *thresholds: unsigned ``[probes, segments]`` each.

    Returns:
      uint32 ``[probes, segments]``, of whole leaves.
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
    """The counts of one leaf's local piece: uint32 [probes, slices]."""
    # Without the barrier XLA moves the keys out of the search's loop, and writes and
    # reads an array as large as the weights.
    arrays = (leaf.weights, leaf.mask, leaf.first)
    arrays, thresholds = jax.lax.optimization_barrier((arrays, list(thresholds)))
    pinned = leaf._replace(weights=arrays[0], mask=arrays[1], first=arrays[2])
    return jnp.stack(
        [
            pinned.count(marker(pinned, *map(pinned.spread, probe)))
            for probe in zip(*thresholds, strict=True)
        ]
    )


def _sum_over_mesh(units: Sequence[Units], counts: Sequence[jax.Array]) -> jax.Array:
    """The counts of whole leaves [probes, segments] from those of local pieces.

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
