"""Ranking: the units of all leaves that are ranked at once.

A pass of the search asks for the counts of all leaves, and gets them in one array. A
count is a sum of integers, so it does not depend on the order of summation: not on
fusion, not on the layout, not on the number of devices. On a mesh the counts of all
leaves that are split alike are added by one all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._top_k.control import COMPILED, PYTHON, ControlFlow
from gradprune_jax._top_k.keys import key_dtype, ranking_key
from gradprune_jax._top_k.summation import add_runs
from gradprune_jax._top_k.units import Units

# Where leaves are fewer, XLA would fuse their counts with the sum of all of them, and
# count some units twice.
MANY_LEAVES = 16


class Thresholds(NamedTuple):
    """Which units are kept: those above the ties, and the ties of low enough index.

    Attributes:
      above: unsigned [slices], the lowest key above that of the ties.
      start: uint32 [..., slices], the least reversed index of a tie that is kept.
    """

    above: jax.Array
    start: jax.Array


class Ranking:
    """The units of all leaves that are ranked at once.

    Numbers `[..., slices]` are one for each slice of each leaf, the leaves in order.
    """

    def __init__(self, leaves: Sequence[Units]) -> None:
        self.leaves = leaves
        # Whether the units are known only when a compiled program runs.
        self.is_traced = any(is_traced(x) for leaf in leaves for x in leaf.data)
        before = np.cumsum([0, *(leaf.slices for leaf in leaves)], dtype=np.uint32)
        self._positions = (
            _unknown_to_xla(before[:-1]) if self.is_traced else before[:-1]
        )

    @property
    def control(self) -> ControlFlow:
        """The loops of a search."""
        return COMPILED if self.is_traced else PYTHON

    @property
    def slices(self) -> int:
        """The number of slices of all leaves."""
        return sum(leaf.slices for leaf in self.leaves)

    @property
    def slice_sizes(self) -> np.ndarray:
        """The number of units in each slice, uint32 [slices]."""
        sizes = [leaf.slice_sizes for leaf in self.leaves]
        return sizes[0] if len(sizes) == 1 else np.concatenate(sizes)

    @property
    def unreached(self) -> np.ndarray:
        """Thresholds that no unit reaches, unsigned [slices]; 32 bits at least."""
        dtypes = [key_dtype(leaf.dtype) for leaf in self.leaves]
        largest = [leaf.unreached for leaf in self.leaves]
        return self.per_slice(largest, np.result_type(np.uint32, *dtypes))

    def keys_of(self, magnitude: float) -> np.ndarray:
        """The key of a live unit of this magnitude in each slice, unsigned [slices]."""
        keys = [ranking_key(magnitude, leaf.dtype) for leaf in self.leaves]
        return self.per_slice(keys, self.unreached.dtype)

    def count_reaching(self, probes: jax.Array) -> jax.Array:
        """How many units reach two probes, in one read: uint32 [2, slices].

        Args:
          probes: unsigned [2, slices].
        """
        return self._total("count_reaching", probes)

    def count_sampled(
        self, samples: Sequence[jax.Array], thresholds: jax.Array
    ) -> jax.Array:
        """How many units of each leaf's sample reach thresholds: uint32 [..., slices].

        Args:
          samples: keys of units of each leaf.
          thresholds: unsigned [..., slices].
        """
        return self.sum_over_mesh(
            leaf.count_sampled(position, keys, thresholds)
            for (leaf, position), keys in zip(self._placed, samples, strict=True)
        )

    def count_kept(self, thresholds: Thresholds) -> jax.Array:
        """How many units are kept, for two starts [2, slices]: uint32 [2, slices]."""
        return self._total("count_kept", *thresholds)

    def kept(self, thresholds: Thresholds) -> list[jax.Array]:
        """Marks the units that are kept: for each leaf, bool of its units' shape."""
        return [leaf.kept(position, *thresholds) for leaf, position in self._placed]

    def per_slice(self, per_leaf: Sequence[Any], dtype: Any) -> np.ndarray:
        """One number for each slice, from one for each leaf: [slices]."""
        return np.repeat(np.array(per_leaf, dtype), [x.slices for x in self.leaves])

    def _total(self, count: str, *numbers: jax.Array) -> jax.Array:
        """The counts that a method of all leaves makes: uint32 [2, slices]."""
        are_many = self.is_traced and len(self.leaves) >= MANY_LEAVES
        in_runs = are_many and all(leaf.is_whole for leaf in self.leaves)
        counts = [
            getattr(leaf, count)(position, *numbers, in_runs=in_runs)
            for leaf, position in self._placed
        ]
        return add_runs(counts) if in_runs else self.sum_over_mesh(counts)

    def sum_over_mesh(self, counts: Iterable[jax.Array]) -> jax.Array:
        """The counts of whole leaves, from each leaf's local ones: [..., slices].

        Each leaf's counts are summed over the mesh axes that split it and over no
        others, by one all-reduce for each set of axes. Under `jit` and `pmap` leaves
        are whole.
        """
        totals = list(counts)
        if not self.is_traced:
            return jnp.asarray(np.concatenate(jax.device_get(totals), axis=-1))
        split_axes = [leaf.shard.split_axes for leaf in self.leaves]
        for axes in sorted(set(split_axes) - {()}):
            members = [i for i, names in enumerate(split_axes) if names == axes]
            local = jnp.concatenate([totals[i] for i in members], axis=-1)
            ends = np.cumsum([self.leaves[i].slices for i in members])
            summed = jnp.split(jax.lax.psum(local, axes), ends[:-1], axis=-1)
            for i, own in zip(members, summed, strict=True):
                totals[i] = own
        return jnp.concatenate(totals, axis=-1)

    @property
    def _placed(self) -> Iterable[tuple[Units, jax.Array]]:
        """Each leaf, and how many slices come before its own."""
        return zip(self.leaves, self._positions, strict=True)


def _unknown_to_xla(numbers: np.ndarray) -> list[jax.Array]:
    """Numbers that XLA does not know when it compiles.

    A leaf reads its thresholds among those of all leaves. If XLA knew where, the
    kernels of no two leaves would be the same, and each would be compiled for itself.
    Leaves of one shape whose positions are operands share their kernels, and most of
    the time to compile is that of kernels.

    So the numbers come out of a loop that never runs, but might as far as XLA can see,
    and would then exchange them.
    """
    if len(numbers) == 1:
        return [jnp.asarray(numbers[0])]
    runs = jax.lax.optimization_barrier(np.bool_(False))

    def exchange(state: Any) -> Any:
        _, (first, *others) = state
        return np.bool_(False), [*others, first]

    start = (runs, [jnp.asarray(number) for number in numbers])
    return jax.lax.while_loop(lambda state: state[0], exchange, start)[1]
