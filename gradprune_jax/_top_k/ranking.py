"""Ranking: the units of all leaves that are ranked at once.

A pass of the search asks for the counts of all leaves, and gets them in one array. A
count is a sum of integers, so it does not depend on the order of summation: not on
fusion, not on the layout, not on the number of devices. On a mesh the counts of all
leaves that are split alike are added by one all-reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.keys import key_dtype
from gradprune_jax._top_k.units import Units


class Ranking(NamedTuple):
    """The units of all leaves that are ranked at once.

    Numbers `[..., slices]` are one for each slice of each leaf, the leaves in order.
    """

    leaves: Sequence[Units]

    @property
    def slices(self) -> int:
        """The number of slices of all leaves."""
        return sum(leaf.slices for leaf in self.leaves)

    @property
    def slice_sizes(self) -> np.ndarray:
        """The number of units in each slice, uint32 [slices]."""
        return self.per_slice([leaf.slice_size for leaf in self.leaves], np.uint32)

    @property
    def unreached(self) -> np.ndarray:
        """Thresholds that no unit reaches, unsigned [slices]; 32 bits at least."""
        dtypes = [key_dtype(leaf.dtype) for leaf in self.leaves]
        largest = [leaf.unreached for leaf in self.leaves]
        return self.per_slice(largest, np.result_type(np.uint32, *dtypes))

    def count_reaching(self, probes: jax.Array) -> jax.Array:
        """How many units reach two probes, in one read: uint32 [2, slices].

        Args:
          probes: unsigned [2, slices].
        """
        leaves = zip(self.leaves, self.split(probes), strict=True)
        return self.sum_over_mesh([leaf.count_reaching(own) for leaf, own in leaves])

    def count_kept(
        self, low: jax.Array, high: jax.Array, starts: jax.Array
    ) -> jax.Array:
        """How many units `kept` marks, for two `starts`: uint32 [2, slices].

        Args:
          low: as of `kept`.
          high: as of `kept`.
          starts: uint32 [2, slices].
        """
        leaves = zip(self.leaves, *map(self.split, (low, high, starts)), strict=True)
        return self.sum_over_mesh([leaf.count_kept(*own) for leaf, *own in leaves])

    def kept(
        self, low: jax.Array, high: jax.Array, start: jax.Array
    ) -> list[jax.Array]:
        """Marks the units above the ties, and the ties of low enough index.

        Args:
          low: unsigned [slices], the lowest key of a tied unit.
          high: unsigned [slices], the keys from here on are above the ties.
          start: uint32 [slices], the least reversed index of a tie that is kept.

        Returns:
          For each leaf, bool of its units' shape.
        """
        leaves = zip(self.leaves, *map(self.split, (low, high, start)), strict=True)
        return [leaf.kept(*own) for leaf, *own in leaves]

    def per_slice(self, per_leaf: Sequence[Any], dtype: Any) -> np.ndarray:
        """One number for each slice, from one for each leaf: [slices]."""
        return np.repeat(np.array(per_leaf, dtype), [x.slices for x in self.leaves])

    def split(self, per_slice: jax.Array) -> list[jax.Array]:
        """The numbers of each leaf's slices, from those of all: [..., slices] each."""
        ends = np.cumsum([leaf.slices for leaf in self.leaves])
        return [
            per_slice[..., end - leaf.slices : end]
            for leaf, end in zip(self.leaves, ends, strict=True)
        ]

    def sum_over_mesh(self, counts: Sequence[jax.Array]) -> jax.Array:
        """The counts of whole leaves, from each leaf's local ones: [..., slices].

        Each leaf's counts are summed over the mesh axes that split it and over no
        others, by one all-reduce for each set of axes. Under `jit` and `pmap` leaves
        are whole.
        """
        split_axes = [leaf.shard.split_axes for leaf in self.leaves]
        totals = list(counts)
        for axes in sorted(set(split_axes) - {()}):
            members = [i for i, names in enumerate(split_axes) if names == axes]
            local = jnp.concatenate([counts[i] for i in members], axis=-1)
            ends = np.cumsum([self.leaves[i].slices for i in members])
            summed = jnp.split(jax.lax.psum(local, axes), ends[:-1], axis=-1)
            for i, own in zip(members, summed, strict=True):
                totals[i] = own
        return jnp.concatenate(totals, axis=-1)
