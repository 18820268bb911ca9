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
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradprune_jax._layouts import resharded
from gradprune_jax._top_k.keys import largest_ranking_key
from gradprune_jax._top_k.shards import Shard
from gradprune_jax._top_k.summation import sum_one, sum_pair


class Units(NamedTuple):
    """The units of one leaf, as selection sees them.

    Attributes:
      data: arrays of the units' shape, local pieces inside `shard_map`, from which keys
        are made.
      make_keys: the rank of every unit from its data, an unsigned integer; 0 for a unit
        that is pruned already.
      first: bool of the units' shape, which live units to keep before all others; or
        None.
      last_index: the last flat index of a slice, uint32 scalar.
      dtype: the floating dtype whose magnitudes the keys rank.
      slice_axes: the axes, ascending, whose slices are ranked apart.
      shard: where the local units lie among those of the whole leaf.
    """

    data: tuple[jax.Array, ...]
    make_keys: Callable[..., jax.Array]
    first: jax.Array | None
    last_index: jax.Array
    dtype: Any
    slice_axes: tuple[int, ...]
    shard: Shard

    @classmethod
    def of_leaf(
        cls,
        data: tuple[jax.Array, ...],
        make_keys: Callable[..., jax.Array],
        *,
        dtype: Any,
        slice_axes: tuple[int, ...],
        shard: Shard,
    ) -> Units:
        """The units of one leaf, none of them kept before others."""
        units = cls(data, make_keys, None, jnp.uint32(0), dtype, slice_axes, shard)
        return units.sliced(slice_axes)

    def sliced(self, slice_axes: tuple[int, ...]) -> Units:
        """The same units, ranked apart in the slices of other axes."""
        units = self._replace(slice_axes=slice_axes)
        return units._replace(last_index=jnp.uint32(max(units.slice_size, 1) - 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the units, of their local piece inside `shard_map`."""
        return self.data[0].shape

    @property
    def slices(self) -> int:
        """The number of slices of the whole leaf that are ranked apart."""
        return math.prod(self.shard.shape[axis] for axis in self.slice_axes)

    @property
    def slice_size(self) -> int:
        """The number of units in one slice of the whole leaf."""
        return math.prod(self.shard.shape[axis] for axis in self._unit_axes(0))

    def pinned(self, others: Any = ()) -> tuple[Units, Any]:
        """The same units, and other arrays, from which XLA makes nothing beforehand.

        It would move keys and indices out of a search's loop, or share them between
        uses, and write and read arrays as large as the weights.
        """
        arrays = (self.data, self.first, self.last_index)
        arrays, others = jax.lax.optimization_barrier((arrays, others))
        data, first, last_index = arrays
        return self._replace(data=data, first=first, last_index=last_index), others

    def keys(self) -> jax.Array:
        """The rank of every unit as an unsigned integer."""
        keys = self.make_keys(*self.data)
        if self.first is None:
            return keys
        above_all = np.asarray(largest_ranking_key(self.dtype) + 1, keys.dtype)
        return jnp.where(self.first & (keys > 0), above_all, keys)

    def reversed_index(self) -> jax.Array:
        """The last flat index of the slice minus the unit's own: uint32.

        A lower index is a larger number, so ties too are broken by a search for the
        largest threshold.
        """
        axes = range(len(self.shape))
        index = jnp.expand_dims(self.last_index, axes)
        stride = 1
        for axis in reversed(self._unit_axes(0)):
            position = self.shard.positions(axis, self.shape[axis]) * stride
            others = [other for other in axes if other != axis]
            index -= jnp.expand_dims(position, others)
            stride *= self.shard.shape[axis]
        return index

    def spread(self, per_slice: jax.Array) -> jax.Array:
        """Numbers [..., slices] of the whole leaf, made to broadcast over units."""
        leading = per_slice.ndim - 1
        if not self.slice_axes:
            return jnp.expand_dims(per_slice[..., 0], self._unit_axes(leading))
        per_slice = self._replicated(per_slice).reshape(
            *per_slice.shape[:-1], *(self.shard.shape[axis] for axis in self.slice_axes)
        )
        for position, axis in enumerate(self.slice_axes, start=leading):
            per_slice = self.shard.own_part(per_slice, axis, self.shape[axis], position)
        return jnp.expand_dims(per_slice, self._unit_axes(leading))

    def sum_units(self, marked: jax.Array) -> jax.Array:
        """How many units of each slice are marked: bool [..., units], uint32."""
        axes = self._unit_axes(marked.ndim - len(self.shape))
        return self._of_whole_leaf(sum_one(marked, axes))

    def sum_pair(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """How many units of each slice two markings mark: uint32 [2, slices]."""
        return self._of_whole_leaf(sum_pair(one, other, self._unit_axes(0)))

    def _unit_axes(self, leading: int) -> tuple[int, ...]:
        """The axes of the units of one slice, after so many leading axes."""
        axes = range(len(self.shape))
        return tuple(leading + axis for axis in axes if axis not in self.slice_axes)

    def _of_whole_leaf(self, counts: jax.Array) -> jax.Array:
        """Counts of local slices as those of all slices, zero elsewhere."""
        if not self.slice_axes:
            return jnp.expand_dims(counts, counts.ndim)
        counts = self._replicated(counts)
        leading = counts.ndim - len(self.slice_axes)
        for position, axis in enumerate(self.slice_axes, start=leading):
            counts = self.shard.among_all(counts, axis, position)
        return counts.reshape(*counts.shape[:leading], self.slices)

    def _replicated(self, numbers: jax.Array) -> jax.Array:
        """Numbers [..., slices], whole on every device, where the mesh is known.

        XLA would lay out the slices of all leaves like those of one, and then the masks
        of the others so too, in place of like their own parameters.
        """
        nowhere = PartitionSpec(*[None] * numbers.ndim)
        if any(jax.typeof(numbers).sharding.spec):  # in explicit sharding mode alone
            return resharded(numbers, jax.typeof(numbers).sharding.mesh, nowhere)
        mesh = jax.typeof(self.data[0]).sharding.mesh
        is_automatic = AxisType.Auto in mesh.axis_types
        if not is_automatic or AxisType.Manual in mesh.axis_types:
            return numbers
        replicated = NamedSharding(mesh, nowhere)
        return jax.lax.with_sharding_constraint(numbers, replicated)


# Which units of a leaf are marked, given thresholds that broadcast over them.
Marker = Callable[..., jax.Array]


def mark(units: Sequence[Units], marker: Marker, *thresholds: jax.Array) -> list[Any]:
    """Marks the units of every leaf by thresholds, one a slice.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      marker: `(leaf, *thresholds) -> bool` of the units' shape.
      *thresholds: unsigned `[segments]` each.

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
      marker: `(leaf, *thresholds) -> bool` of the units' shape.
      *thresholds: unsigned `[2, segments]` each.

    Returns:
      uint32 `[2, segments]`, of whole leaves.
    """
    ends = np.cumsum([leaf.slices for leaf in units])
    local = [
        _count_leaf(leaf, marker, [t[:, end - leaf.slices : end] for t in thresholds])
        for leaf, end in zip(units, ends, strict=True)
    ]
    return sum_over_mesh(units, local)


def _count_leaf(
    leaf: Units, marker: Marker, thresholds: Sequence[jax.Array]
) -> jax.Array:
    """The counts of one leaf's local piece: uint32 [2, slices]."""
    pinned, thresholds = leaf.pinned(list(thresholds))
    one, other = (
        marker(pinned, *map(pinned.spread, probe))
        for probe in zip(*thresholds, strict=True)
    )
    return pinned.sum_pair(one, other)


def sum_over_mesh(units: Sequence[Units], counts: Sequence[jax.Array]) -> jax.Array:
    """The counts of whole leaves [..., segments] from those of local pieces.

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
