"""Units: the units of one leaf, and how many of them reach a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
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
    """The units of one leaf.

    Attributes:
      data: arrays of the units' shape, local pieces inside `shard_map`, from which keys
        are made.
      make_keys: makes the key of every unit from `data`: an unsigned integer, 0 for a
        unit that is pruned already.
      first: bool of the units' shape, which live units to keep before all others; or
        None.
      last_index: the last flat index of a slice, uint32 scalar.
      dtype: the floating dtype whose magnitudes the keys rank.
      slice_axes: the axes, ascending, along which the slices lie.
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
        last_index = _last_index(shard, slice_axes)
        return cls(data, make_keys, None, last_index, dtype, slice_axes, shard)

    def sliced(self, slice_axes: tuple[int, ...]) -> Units:
        """The same units, with slices along other axes."""
        last_index = _last_index(self.shard, slice_axes)
        return self._replace(slice_axes=slice_axes, last_index=last_index)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the units, of their local piece inside `shard_map`."""
        return self.data[0].shape

    @property
    def slices(self) -> int:
        """The number of slices of the whole leaf."""
        return math.prod(self.shard.shape[axis] for axis in self.slice_axes)

    @property
    def slice_size(self) -> int:
        """The number of units in one slice of the whole leaf."""
        return math.prod(self.shard.shape[axis] for axis in self._unit_axes(0))

    @property
    def unreached(self) -> int:
        """A threshold that no unit reaches, not even one that is kept first."""
        return largest_ranking_key(self.dtype) + 2

    def keys(self) -> jax.Array:
        """The key of every unit."""
        keys = self.make_keys(*self.data)
        if self.first is None:
            return keys
        above_all = np.asarray(largest_ranking_key(self.dtype) + 1, keys.dtype)
        return jnp.where(self.first & (keys > 0), above_all, keys)

    def reversed_index(self) -> jax.Array:
        """The last flat index of the slice minus the unit's own: uint32.

        A lower index is a larger number here, so ties too are broken by a search for
        the largest threshold.
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

    def reaching(self, threshold: jax.Array) -> jax.Array:
        """Marks the units whose key is at least their slice's threshold, [slices]."""
        threshold = self.spread(threshold)
        return self.keys().astype(threshold.dtype) >= threshold

    def kept(self, low: jax.Array, high: jax.Array, start: jax.Array) -> jax.Array:
        """Marks the units above the ties, and the ties of low enough index.

        Args:
          low: unsigned [slices], the lowest key of a tied unit.
          high: unsigned [slices], the keys from here on are above the ties.
          start: uint32 [slices], the least reversed index of a tie that is kept.
        """
        low, high, start = map(self.spread, (low, high, start))
        keys = self.keys().astype(low.dtype)
        return (keys >= high) | ((keys >= low) & (self.reversed_index() >= start))

    def count_reaching(self, probes: jax.Array) -> jax.Array:
        """How many local units reach two probes [2, slices]: uint32 of that shape."""
        units, probes = self._pinned(probes)
        return units._sum_pair(*(units.reaching(probe) for probe in probes))

    def count_kept(
        self, low: jax.Array, high: jax.Array, starts: jax.Array
    ) -> jax.Array:
        """How many local units are kept, for two `starts`: uint32 [2, slices]."""
        units, (low, high, starts) = self._pinned((low, high, starts))
        return units._sum_pair(*(units.kept(low, high, start) for start in starts))

    def count_marked(self, marked: jax.Array) -> jax.Array:
        """How many units, all or a sample of them, are marked: uint32 [..., slices].

        Args:
          marked: bool [..., units], with as many axes for the units as the leaf has.
        """
        axes = self._unit_axes(marked.ndim - len(self.shape))
        return self._of_all_slices(sum_one(marked, axes))

    def pinned_keys(self) -> jax.Array:
        """The key of every unit, made anew wherever this is called."""
        units, _ = self._pinned(())
        return units.keys()

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

    def _pinned(self, others: Any) -> tuple[Units, Any]:
        """The same units and other arrays, behind an optimization barrier.

        Else XLA would move keys and indices out of a search's loop, or share them
        between uses, and so write and read arrays as large as the weights.
        """
        arrays = (self.data, self.first, self.last_index)
        arrays, others = jax.lax.optimization_barrier((arrays, others))
        data, first, last_index = arrays
        return self._replace(data=data, first=first, last_index=last_index), others

    def _sum_pair(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """How many units of each slice two markings mark: uint32 [2, slices]."""
        return self._of_all_slices(sum_pair(one, other, self._unit_axes(0)))

    def _unit_axes(self, leading: int) -> tuple[int, ...]:
        """The axes of the units of one slice, after so many leading axes."""
        axes = range(len(self.shape))
        return tuple(leading + axis for axis in axes if axis not in self.slice_axes)

    def _of_all_slices(self, counts: jax.Array) -> jax.Array:
        """Counts [..., slices] of the whole leaf, 0 in slices of other devices."""
        if not self.slice_axes:
            return jnp.expand_dims(counts, counts.ndim)
        counts = self._replicated(counts)
        leading = counts.ndim - len(self.slice_axes)
        for position, axis in enumerate(self.slice_axes, start=leading):
            counts = self.shard.among_all(counts, axis, position)
        return counts.reshape(*counts.shape[:leading], self.slices)

    def _replicated(self, numbers: jax.Array) -> jax.Array:
        """Numbers [..., slices], whole on every device, where the mesh is known.

        Else XLA would give the numbers of all leaves the layout of one leaf, and then
        the masks of the other leaves that layout too.
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


def _last_index(shard: Shard, slice_axes: tuple[int, ...]) -> jax.Array:
    """The last flat index of a slice, uint32 scalar."""
    axes = enumerate(shard.shape)
    size = math.prod(length for axis, length in axes if axis not in slice_axes)
    return jnp.uint32(max(size, 1) - 1)
