r"""Sampling: a guess at the thresholds, from a regular grid of every leaf.

A few thousand units say within a few per cent where the k-th of all keys lies, which
saves the search most of its passes over the data. The sample is a regular grid of the
leaf, laid out over devices as the leaf is, and is searched by counting as well: so no
unit leaves its device, and nothing is sorted or gathered.

With m of n units in the sample, the number of sampled keys above the wanted threshold
is binomial: $m p \pm \sqrt{m p (1 - p)}$, for a share p = k / n. The guess lies at one
of these deviations to either side. A sample that misleads costs passes, and changes no
mask.

The sample is searched by windows of evenly spaced thresholds. Each is an eighth of the
one before, until its steps are finer than the guess has to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.counts import Count
from gradprune_jax._top_k.devices import is_split, part_of_device
from gradprune_jax._top_k.ranking import Ranking
from gradprune_jax._top_k.search import Groups, Probes
from gradprune_jax._top_k.units import Units

# A sample pays where leaves are few and large. It saves several passes over the data,
# and costs a dozen over the sample, and kernels of its own for each shape when the
# update is compiled.
MOST_LEAVES = 64
SMALLEST_SAMPLED = 2**18
# About how many units of a leaf are sampled; more where that is less than one in
# LARGEST_STRIDE.
SAMPLE_SIZE = 2**12
LARGEST_STRIDE = 2**10
# How many thresholds a window has.
STEPS = 2**4


class Samples(NamedTuple):
    """Some units of every leaf.

    Attributes:
      ranking: the leaves.
      keys: for each leaf the keys of its sampled units, with as many axes as the leaf.
      strides: how many units there are for each that is sampled, uint32 [slices].
      sizes: the number of sampled units, [slices].
    """

    ranking: Ranking
    keys: Sequence[jax.Array]
    strides: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of_ranking(cls, ranking: Ranking) -> Samples:
        """A regular grid of every leaf."""
        keys = [_grid(leaf) for leaf in ranking.leaves]
        strides = [
            max(math.prod(leaf.shape), 1) / max(sampled.size, 1)
            for leaf, sampled in zip(ranking.leaves, keys, strict=True)
        ]
        sizes = ranking.slice_sizes / ranking.per_slice(strides, float)
        return cls(ranking, keys, ranking.per_slice(strides, np.uint32), sizes)

    def estimate(self, thresholds: jax.Array) -> jax.Array:
        """How many units reach thresholds, if the others are like the sampled ones.

        Args:
          thresholds: unsigned [..., slices].

        Returns:
          uint32 [..., slices].
        """
        thresholds = jax.lax.optimization_barrier(thresholds)
        total = self.ranking.count_sampled(self.keys, thresholds)
        return total * jnp.broadcast_to(self.strides, total.shape)


class _Window(NamedTuple):
    """Evenly spaced thresholds, and how many units are estimated to reach them.

    Attributes:
      low: the lowest of them, unsigned [slices].
      step: from each to the next, unsigned [slices].
      reached: how many units of each slice's group reach them, float32 [STEPS, slices].
      live: how many are not pruned, float32 [slices].
    """

    low: jax.Array
    step: jax.Array
    reached: jax.Array
    live: jax.Array

    def last_reached_by(self, rank: jax.Array) -> jax.Array:
        """The highest of the thresholds that `rank` units reach, else the lowest."""
        number = jnp.sum(self._is_below(rank), 0, dtype=self.low.dtype)
        return self.low + (jnp.maximum(number, 1) - 1) * self.step

    def first_not_passed_by(self, rank: jax.Array) -> jax.Array:
        """The lowest of the thresholds that at most `rank` units reach, or the end."""
        passed = self.reached > jnp.expand_dims(rank, 0)
        number = jnp.sum(passed, 0, dtype=self.low.dtype)
        return self.low + number * self.step

    def inside(self, rank: jax.Array) -> jax.Array:
        """How many units lie in the step that `rank` is in; infinite if in none."""
        is_below = self._is_below(rank)
        at_low = jnp.min(jnp.where(is_below, self.reached, jnp.inf), 0)
        return at_low - jnp.max(jnp.where(is_below, 0, self.reached), 0)

    def _is_below(self, rank: jax.Array) -> jax.Array:
        """Which of the thresholds `rank` units reach: bool [STEPS, slices]."""
        return self.reached >= jnp.expand_dims(rank, 0)


def guess_thresholds(
    ranking: Ranking, kept: Count, groups: Groups, top: np.ndarray
) -> Probes | None:
    """Two thresholds between which the one that `kept` units reach is likely to lie.

    Args:
      ranking: the leaves.
      kept: how many units to keep of each slice's group, [slices].
      groups: how slices form groups.
      top: unsigned [slices], thresholds that no unit reaches.

    Returns:
      The thresholds, `low < high`, [slices]; None where leaves are small or many.
    """
    leaves = ranking.leaves
    largest = max(leaf.slice_size for leaf in leaves)
    if largest < SMALLEST_SAMPLED or len(leaves) > MOST_LEAVES:
        return None
    samples = Samples.of_ranking(ranking)
    rank, margin = _ranks(samples, kept, groups)

    def target(window: _Window) -> jax.Array:
        return jnp.clip(rank, 0.5, window.live)

    def is_wide(window: _Window) -> jax.Array:
        inside = window.inside(target(window))
        return jnp.any((inside > margin / 2) & (window.step > 1))

    def narrow(window: _Window) -> _Window:
        """Two steps of a window, the one that `rank` is in and half of one around."""
        low = window.last_reached_by(target(window))
        low -= jnp.minimum(window.step // 2, low - 1)  # above 0, the key of pruned ones
        step = window.step // (STEPS // 2) + 1
        along = jnp.arange(STEPS, dtype=low.dtype).reshape(-1, 1)
        probes = jnp.expand_dims(low, 0) + along * jnp.expand_dims(step, 0)
        reached = samples.estimate(probes).astype(jnp.float32)
        if groups.together:
            total = jnp.sum(reached, -1, keepdims=True)
            reached = jnp.broadcast_to(total, reached.shape)
        live = jnp.where(jnp.isinf(window.live), reached[0], window.live)
        return _Window(low, step, reached, live)

    slices = (groups.slices,)
    everything = _Window(
        low=jnp.ones(slices, top.dtype),
        step=jnp.asarray(top // 2),
        reached=jnp.zeros((STEPS, *slices), jnp.float32),
        live=jnp.full(slices, jnp.inf, jnp.float32),
    )
    window = ranking.control.while_loop(is_wide, narrow, everything)
    # Most updates prune a little more than is pruned already. Then the threshold is
    # just above the smallest key of a live unit, far from the 0 of pruned ones.
    low = window.last_reached_by(jnp.minimum(rank + margin, window.live))
    high = window.first_not_passed_by(jnp.maximum(rank - margin, 0))
    # Where more units are wanted than are live, the threshold is 0.
    is_zero = rank > window.live + margin
    one = jnp.ones_like(low)
    low = jnp.where(is_zero, one, low)
    return Probes(low, jnp.where(is_zero, one + one, jnp.maximum(high, low + 1)))


def _ranks(
    samples: Samples, kept: Count, groups: Groups
) -> tuple[jax.Array, jax.Array]:
    """Return the estimate to look for, and how far it may be off: float32 [slices]."""

    def over_groups(per_slice: np.ndarray) -> np.ndarray:
        return per_slice.sum(keepdims=True) if groups.together else per_slice

    sizes = samples.ranking.slice_sizes.astype(float)
    strides = samples.strides.astype(float)
    whole = np.maximum(over_groups(strides * samples.sizes), 1)
    rank = kept.as_float() * np.float32(whole / np.maximum(over_groups(sizes), 1))
    share = jnp.clip(rank / np.float32(whole), 0, 1)
    deviation = np.sqrt(over_groups(strides**2 * samples.sizes))
    step = strides.max(keepdims=True) if groups.together else strides
    margin = np.float32(deviation) * jnp.sqrt(share * (1 - share))
    return rank, margin + 4 * np.float32(step)


def _grid(leaf: Units) -> jax.Array:
    """Take the keys of a regular grid of the units of every slice."""
    keys = leaf.pinned_keys()
    stride = min(leaf.slice_size // SAMPLE_SIZE, LARGEST_STRIDE)
    # Short axes are left whole: the taps of a convolution's kernel are not alike.
    axes = [
        axis
        for axis, size in enumerate(keys.shape)
        if axis not in leaf.slice_axes and size >= 16 and not is_split(keys, axis)
    ]
    axes.sort(key=lambda axis: -keys.shape[axis])
    for left, axis in zip(range(len(axes), 0, -1), axes, strict=True):
        along_axis = round(stride ** (1 / left))
        if along_axis > 1:
            keys = _every(keys, axis, along_axis)
            stride //= along_axis
    return keys


def _every(keys: jax.Array, axis: int, stride: int) -> jax.Array:
    """Take every `stride`-th key along an axis, without moving any between devices.

    Devices hold an axis in equal parts. So the axis is split into blocks, the shortest
    that divide a part, and keys are taken from each block.
    """
    length, part = keys.shape[axis], part_of_device(keys, axis)
    stride = min(stride, part)
    block = next(n for n in range(stride, part + 1) if part % n == 0)
    shape = keys.shape
    blocks = keys.reshape(*shape[:axis], length // block, block, *shape[axis + 1 :])
    taken = jax.lax.slice_in_dim(blocks, stride // 2, block, stride, axis + 1)
    return taken.reshape(*shape[:axis], -1, *shape[axis + 1 :])
