"""Units: the units of one leaf, and how many of them reach a threshold."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gradprune_jax._layouts import resharded
from gradprune_jax._top_k.devices import most_devices
from gradprune_jax._top_k.keys import largest_ranking_key
from gradprune_jax._top_k.shards import Shard
from gradprune_jax._top_k.summation import (
    sum_one,
    sum_pair,
    sum_pair_in_runs,
)

# A field that is known when a function of the leaf is traced.
STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one leaf.

    Its counts are compiled functions of it, so leaves of one shape are traced once.
    They take the numbers of all leaves' slices, [..., all slices], and the position of
    the leaf's own among them, a uint32 scalar.

    Attributes:
      data: arrays of the units' shape, local pieces inside `shard_map`, from which keys
        are made.
      first: bool of the units' shape, which live units to keep before all others; or
        None.
      make_keys: makes the key of every unit from `data` and `dtype`: an unsigned
        integer, 0 for a unit that is pruned already.
      dtype: the floating dtype whose magnitudes the keys rank.
      slice_axes: the axes, ascending, along which the slices lie.
      shard: where the local units lie among those of the whole leaf.
      signed: whether keys are those of scores, as `score_keys` makes them.
    """

    data: tuple[jax.Array, ...]
    first: jax.Array | None
    make_keys: Callable[..., jax.Array] = dataclasses.field(metadata=STATIC)
    dtype: Any = dataclasses.field(metadata=STATIC)
    slice_axes: tuple[int, ...] = dataclasses.field(metadata=STATIC)
    shard: Shard = dataclasses.field(metadata=STATIC)
    signed: bool = dataclasses.field(default=False, metadata=STATIC)

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
    def slice_sizes(self) -> np.ndarray:
        """The number of units in each slice, uint32 [slices]."""
        return np.full(self.slices, self.slice_size, np.uint32)

    @property
    def unreached(self) -> int:
        """A threshold that no unit reaches, not even one that is kept first."""
        return largest_ranking_key(self.dtype, signed=self.signed) + 2

    def keys(self) -> jax.Array:
        """The key of every unit."""
        keys = self.make_keys(*self.data, dtype=self.dtype)
        if self.first is None:
            return keys
        above_all = np.asarray(self.unreached - 1, keys.dtype)
        return jnp.where(self.first & (keys > 0), above_all, keys)

    def reversed_index(self, last_index: Any) -> jax.Array:
        """The last flat index of the slice minus the unit's own: uint32.

        A lower index is a larger number here, so ties too are broken by a search for
        the largest threshold.
        """
        axes = range(len(self.shape))
        index = jnp.expand_dims(last_index, axes)
        stride = 1
        for axis in reversed(self._unit_axes(0)):
            others = [other for other in axes if other != axis]
            along = self.shard.positions(axis, self.shape[axis], stride)
            index -= jnp.expand_dims(along, others)
            stride *= self.shard.shape[axis]
        return index

    @property
    def is_whole(self) -> bool:
        """Whether the leaf is known to be whole on a device.

        One that a mesh axis of one device splits is so too, but its type says that it
        varies along that axis, until its counts are summed.
        """
        return not self.shard.split_axes and most_devices(self.data[0]) == 1

    @functools.partial(jax.jit, static_argnames="in_runs")
    def count_reaching(
        self, position: jax.Array, probes: jax.Array, *, in_runs: bool
    ) -> jax.Array:
        """How many local units reach two probes: uint32 [2, slices].

        Args:
          position: of the leaf's slices among all.
          probes: unsigned [2, all slices].
          in_runs: whether to return what `add_runs` adds up: uint32 [slices, runs].
        """
        # Else XLA would move keys and indices out of a search's loop, or share them
        # between uses, and so write and read arrays as large as the weights.
        pinned = jax.lax.optimization_barrier((self, position, probes))
        units, position, probes = pinned
        keys = units.keys().astype(probes.dtype)
        one, other = (keys >= units._spread_own(position, probe) for probe in probes)
        return units._sum_pair(one, other, in_runs)

    @functools.partial(jax.jit, static_argnames="in_runs")
    def count_kept(
        self,
        position: jax.Array,
        above: jax.Array,
        starts: jax.Array,
        *,
        in_runs: bool,
    ) -> jax.Array:
        """How many local units `kept` marks, for two `starts`: uint32 [2, slices].

        Args:
          position: of the leaf's slices among all.
          above: as of `kept`.
          starts: uint32 [2, all slices].
          in_runs: as of `count_reaching`.
        """
        numbers = (self._last_index, position, above, starts)
        units, numbers = jax.lax.optimization_barrier((self, numbers))
        last_index, position, *numbers = numbers
        pair = units._above_or_tied(last_index, position, *numbers)
        return units._sum_pair(*pair, in_runs)

    @jax.jit
    def kept(
        self, position: jax.Array, above: jax.Array, start: jax.Array
    ) -> jax.Array:
        """Marks the units above the ties, and the ties of low enough index.

        Args:
          position: of the leaf's slices among all.
          above: unsigned [all slices], the lowest key above that of the ties.
          start: uint32 [all slices], the least reversed index of a tie that is kept.
        """
        return self._above_or_tied(self._last_index, position, above, [start])[0]

    @jax.jit
    def count_sampled(
        self, position: jax.Array, keys: jax.Array, thresholds: jax.Array
    ) -> jax.Array:
        """How many local units of a sample reach thresholds: uint32 [..., slices].

        Args:
          position: of the leaf's slices among all.
          keys: those of the sampled units, with as many axes as the leaf.
          thresholds: unsigned [..., all slices].
        """
        thresholds = self._spread_own(position, thresholds)
        leading = thresholds.ndim - keys.ndim
        keys = jnp.expand_dims(keys, range(leading)).astype(thresholds.dtype)
        marked = keys >= thresholds
        return self._of_all_slices(sum_one(marked, self._unit_axes(leading)))

    def pinned_keys(self) -> jax.Array:
        """The key of every unit, made anew wherever this is called."""
        return jax.lax.optimization_barrier(self).keys()

    def _spread_own(self, position: jax.Array, numbers: jax.Array) -> jax.Array:
        """The leaf's own of [..., all slices] numbers, to broadcast over units."""
        axis = numbers.ndim - 1
        own = jax.lax.dynamic_slice_in_dim(numbers, position, self.slices, axis)
        return self._spread(own)

    def _spread(self, per_slice: jax.Array) -> jax.Array:
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

    def _above_or_tied(
        self, last_index: Any, position: jax.Array, above: jax.Array, starts: Any
    ) -> list[jax.Array]:
        """Marks units as `kept` does, once for each start."""
        keys, above = self.keys().astype(above.dtype), self._spread_own(position, above)
        index = self.reversed_index(last_index)
        marks = []
        for start in starts:
            start = self._spread_own(position, start).astype(index.dtype)
            # A tie is one below: half as many comparisons as one for each case.
            marks.append(keys + (index >= start).astype(keys.dtype) >= above)
        return marks

    def _sum_pair(self, one: jax.Array, other: jax.Array, in_runs: bool) -> jax.Array:
        """How many units of each slice two markings mark: uint32 [2, slices]."""
        if in_runs:
            return sum_pair_in_runs(one, other, self._unit_axes(0))
        return self._of_all_slices(sum_pair(one, other, self._unit_axes(0)))

    @property
    def _last_index(self) -> jax.Array:
        """The last flat index of a slice, uint32 scalar."""
        return jnp.uint32(max(self.slice_size, 1) - 1)

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
