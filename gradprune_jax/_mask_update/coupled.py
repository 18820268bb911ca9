"""Coupled channels: the units of a group, and what they are in each of its members.

An index of an axis may have units of several groups, as where heads and their widths
are one axis, and it stays as long as all of its units do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.allocation import Budget
from gradprune_jax._mask_update.floors import protect
from gradprune_jax._mask_update.leaf import RankedLeaf, weight_keys
from gradprune_jax._mask_update.pooling import LocalBlocks
from gradprune_jax._mask_update.rounding import to_multiples
from gradprune_jax._mask_update.units import Pooling, units_of_keys
from gradprune_jax._program import ChannelGroup
from gradprune_jax._structures import CoupledChannels, Pool, kernels, units_of_indices
from gradprune_jax._top_k import (
    Count,
    Shard,
    Units,
    ranking_dtype,
    top_k,
    whole,
    wider_dtype,
)


class Member(NamedTuple):
    """How a group lies in one of its members. Hashable.

    Attributes:
      leaf: the position of the member among the rule's leaves.
      axis: the axis of the group.
      indices: the indices that each unit has there: sequences with one a unit, -1 where
        it has fewer.
      is_kernel: whether the member's weights count in the scores.
      shard: where the leaf lies in its whole array.
    """

    leaf: int
    axis: int
    indices: tuple[Sequence[int], ...]
    is_kernel: bool
    shard: Shard

    def largest(self, numbers: jax.Array) -> jax.Array:
        """The largest number of each unit, of an array of the leaf's shape."""
        along = self._along(numbers, LocalBlocks.maximum)
        return functools.reduce(jnp.maximum, self._of_units(along))

    def sum(self, numbers: jax.Array) -> jax.Array:
        """The sum of each unit, of an array of the leaf's shape."""
        along = self._along(numbers, LocalBlocks.sum)
        return functools.reduce(jnp.add, self._of_units(along))

    def weights_of_units(self) -> np.ndarray:
        """How many weights of the member each unit has, int64."""
        shape = self.shard.shape
        of_index = math.prod(shape) // shape[self.axis]
        return of_index * np.sum(np.array(self.indices, int) >= 0, axis=0)

    def _along(
        self, numbers: jax.Array, reduce: Callable[[LocalBlocks, jax.Array], jax.Array]
    ) -> jax.Array:
        """The numbers reduced to one an index of the axis, whole on every device."""
        block = [max(size, 1) for size in self.shard.shape]
        block[self.axis] = 1
        blocks = LocalBlocks(tuple(block), self.shard, numbers.shape)
        reduced = reduce(blocks, numbers)
        names = self.shard.axis_names[self.axis]
        # Also along a mesh axis of one device, which the type of an array has too.
        if not names and jax.typeof(reduced).sharding.spec[self.axis] is not None:
            reduced = self.shard.gather(reduced, self.axis)
        others = [axis for axis in range(len(block)) if axis != self.axis]
        along = jax.lax.squeeze(reduced, others)
        if not names:
            return along
        return jax.lax.psum(self.shard.among_all(along, self.axis, 0), names)

    def _of_units(self, along: jax.Array) -> list[jax.Array]:
        """The numbers at the first, the second, ... index of each unit; 0 for none."""
        found = []
        for sequence in self.indices:
            indices = np.array(sequence, int)
            if np.array_equal(indices, np.arange(len(along))):
                found.append(along)
                continue
            own = along[np.maximum(indices, 0)]
            found.append(own if indices.min() >= 0 else jnp.where(indices < 0, 0, own))
        return found

    def of_indices(self, kept: jax.Array) -> jax.Array:
        """Where all units of an index of the axis are kept: bool [size]."""
        stays = jnp.ones(self.shard.shape[self.axis], bool)
        for units in units_of_indices(self.indices, len(stays)):
            stays &= jnp.where(units < 0, True, kept[np.maximum(units, 0)])
        return stays


def groups_of_leaves(
    structure: CoupledChannels, leaves: Sequence[RankedLeaf]
) -> list[tuple[ChannelGroup, list[Member]]]:
    """The groups that a rule prunes, each with its members among the rule's leaves."""
    positions = {leaf.name: position for position, leaf in enumerate(leaves)}
    found = []
    for group in structure.groups_among(positions):
        members = []
        for (name, axis), indices, is_kernel in zip(
            group.members, group.indices, kernels(group), strict=True
        ):
            leaf = positions[name]
            shard = leaves[leaf].shard
            members.append(Member(leaf, axis, indices, is_kernel, shard))
        found.append((group, members))
    return found


def select_coupled(
    structure: CoupledChannels,
    groups: Sequence[Sequence[Member]],
    budget: Budget,
    leaves: Sequence[RankedLeaf],
) -> list[jax.Array]:
    """Marks the weights of the highest units of every group.

    Args:
      structure: the structure.
      groups: its groups, by their members.
      budget: how many units of them are kept.
      leaves: the rule's leaves.

    Returns:
      For each leaf bools that broadcast to its local shape.
    """
    dtypes = [leaf.numbers.dtype for leaf in leaves]
    together = ranking_dtype(*dtypes) if budget.together else None
    units = [
        _units_of_group(members, structure.pool, together, leaves) for members in groups
    ]
    ranked = units
    if budget.of_slices is not None:
        ranked = protect(units, top_k(units, budget.of_slices))
    selected = top_k(ranked, budget.kept, together=budget.together)
    if budget.together and structure.round_to > 1:
        counts = Count.of_uint32(
            jnp.stack([jnp.sum(kept, dtype=jnp.uint32) for kept in selected])
        )
        sizes = [own.slice_size for own in units]
        rounded = to_multiples(counts, sizes, structure.round_to, budget.of_slices)
        selected = top_k(units, rounded)
    stays = [jnp.ones([1] * leaf.numbers.ndim, bool) for leaf in leaves]
    for members, kept in zip(groups, selected, strict=True):
        for member in members:
            shape = leaves[member.leaf].numbers.shape
            along = member.shard.own_part(
                member.of_indices(kept), member.axis, shape[member.axis], 0
            )
            others = [axis for axis in range(len(shape)) if axis != member.axis]
            stays[member.leaf] = stays[member.leaf] & jnp.expand_dims(along, others)
    return stays


def _units_of_group(
    members: Sequence[Member],
    pool: Pool,
    together: Any,
    leaves: Sequence[RankedLeaf],
) -> Units:
    """The units of a group, scored once; whole on every device."""
    arrays = [(leaves[own.leaf].numbers, leaves[own.leaf].mask) for own in members]
    dtypes = [
        numbers.dtype
        for own, (numbers, _) in zip(members, arrays, strict=True)
        if own.is_kernel
    ]
    dtype = ranking_dtype(*dtypes) if together is None else together
    if pool == "mean":
        dtype = wider_dtype(dtype, jnp.float32)
    pooling = Pooling(pool, dtype, any(leaf.signed for leaf in leaves))
    # Without the position of a leaf, groups that look alike are traced once.
    alike = tuple(own._replace(leaf=0) for own in members)
    keys = _unit_keys(arrays, alike, pooling)
    return units_of_keys(keys, pooling, whole(keys.shape))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _unit_keys(
    arrays: Sequence[tuple[jax.Array, jax.Array]],
    members: Sequence[Member],
    pooling: Pooling,
) -> jax.Array:
    """The scores of a group's units, as keys that rank them.

    Args:
      arrays: the numbers that rank the weights of each member, and its mask; local
        pieces inside `shard_map`.
      members: the members.
      pooling: how these numbers make a score.

    Returns:
      Unsigned integers [units]: 0 where all weights of a unit are pruned, in every
      member, else the key of its score. The same on every device.
    """
    own = list(zip(members, arrays, strict=True))
    scored = [(member, *pair) for member, pair in own if member.is_kernel]
    others = [(member, *pair) for member, pair in own if not member.is_kernel]

    def keys(numbers: jax.Array, mask: jax.Array) -> jax.Array:
        # Made anew for each reduction, in its loop: no array as large as the weights.
        own, live = jax.lax.optimization_barrier((numbers, mask))
        return weight_keys(own, live, pooling.dtype, signed=pooling.signed)

    def largest_of(numbers_of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        found = [member.largest(numbers_of(keys(*own))) for member, *own in scored]
        return functools.reduce(jnp.maximum, found)

    def sum_of(numbers_of: Callable[[jax.Array], jax.Array]) -> jax.Array:
        found = [member.sum(numbers_of(keys(*own))) for member, *own in scored]
        return functools.reduce(jnp.add, found)

    highest = largest_of(lambda keys: keys)
    live = functools.reduce(
        jnp.logical_or,
        [member.largest(mask.astype(jnp.uint32)) > 0 for member, _, mask in others],
        highest > 0,
    )
    if pooling.pool == "max":
        return jnp.where(live, jnp.maximum(highest, 1), 0)
    sizes = np.sum([member.weights_of_units() for member, _, _ in scored], axis=0)
    return pooling.mean_keys(
        highest,
        live,
        largest_of,
        sum_of,
        int(sizes.max()),
        jnp.asarray(sizes, jnp.uint32),
        jnp.max,
    )
