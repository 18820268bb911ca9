r"""Sampling: a guess at the thresholds, from a regular grid of every leaf.

A few thousand units say within a few per cent where the k-th of all keys lies, which
saves the search most of its passes over the data. The sample is a regular grid of the
leaf, laid out over devices as the leaf is, and is searched by counting as well: so no
unit leaves its device, and nothing is sorted or gathered.

With m of n units in the sample, the number of sampled keys above the wanted threshold
is binomial: $m p \pm \sqrt{m p (1 - p)}$, for a share p = k / n. The guess lies
at one and a quarter of these deviations to either side. A sample that misleads costs
passes, and changes no mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.counting import Units, sum_over_mesh
from gradprune_jax._top_k.counts import Count, minimum
from gradprune_jax._top_k.search import Bracket, Groups, Guess, search
from gradprune_jax._top_k.summation import is_split, part_of_device

# A sample pays where leaves are few and large. It saves several passes over the data,
# and costs a dozen over the sample, and for each leaf a twentieth of a second when the
# update is compiled.
MOST_LEAVES = 64
SMALLEST_SAMPLED = 2**18
# About how many units of a leaf are sampled; more where that is less than one in
# LARGEST_STRIDE.
SAMPLE_SIZE = 2**12
LARGEST_STRIDE = 2**10


class Samples(NamedTuple):
    """Some units of every leaf.

    Attributes:
      units: the leaves.
      keys: for each leaf the keys of its sampled units, with as many axes as the leaf.
      strides: how many units there are for each that is sampled, [segments].
      sizes: the number of sampled units, [segments].
    """

    units: Sequence[Units]
    keys: Sequence[jax.Array]
    strides: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of_leaves(cls, units: Sequence[Units]) -> Samples:
        """A regular grid of every leaf."""
        keys = [_grid(leaf) for leaf in units]
        shares = [
            max(math.prod(leaf.shape), 1) / max(sampled.size, 1)
            for leaf, sampled in zip(units, keys, strict=True)
        ]
        slices = [leaf.slices for leaf in units]
        sizes = [
            leaf.slice_size / share for leaf, share in zip(units, shares, strict=True)
        ]
        return cls(
            units,
            keys,
            np.repeat(np.array(shares).astype(np.uint32), slices),
            np.repeat(np.array(sizes), slices),
        )

    def estimate(self, thresholds: jax.Array) -> jax.Array:
        """How many units reach thresholds, if the others are like the sampled.

        Args:
          thresholds: unsigned [..., segments].

        Returns:
          uint32 [..., segments].
        """
        thresholds = jax.lax.optimization_barrier(thresholds)
        ends = np.cumsum([leaf.slices for leaf in self.units])
        counts = []
        for leaf, keys, end in zip(self.units, self.keys, ends, strict=True):
            own = leaf.spread(thresholds[..., end - leaf.slices : end])
            keys = jnp.expand_dims(keys, range(own.ndim - keys.ndim))
            counts.append(leaf.sum_units(keys.astype(own.dtype) >= own))
        total = sum_over_mesh(self.units, counts)
        return total * jnp.broadcast_to(self.strides, total.shape)


def guess_thresholds(
    units: Sequence[Units], kept: Count, groups: Groups, top: np.ndarray
) -> Guess | None:
    """Where the thresholds that `kept` units reach are likely to lie.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      kept: how many units to keep, [groups].
      groups: how segments form groups.
      top: unsigned [groups], thresholds that no unit reaches.

    Returns:
      The guess, [groups]; None where leaves are small or many.
    """
    largest = max(leaf.slice_size for leaf in units)
    if largest < SMALLEST_SAMPLED or len(units) > MOST_LEAVES:
        return None
    samples = Samples.of_leaves(units)
    rank, margin = _ranks(samples, kept, groups)
    live = samples.estimate(jnp.ones(groups.segments, top.dtype))
    at_first = groups.total(live)
    # Most updates prune a little more than is pruned already: then the threshold is
    # just above the smallest key that lives, far from the 0 of pruned weights.
    lower = minimum(Count.of_float(rank + margin), at_first)
    upper = Count.of_float(jnp.maximum(rank - margin, 0))
    wanted = Count(
        jnp.stack([lower.high, upper.high]), jnp.stack([lower.low, upper.low])
    )
    shape = wanted.low.shape
    bracket = search(
        samples.estimate,
        Bracket(
            jnp.ones(shape, top.dtype),
            jnp.broadcast_to(top, shape),
            jnp.broadcast_to(live, (2, groups.segments)),
            jnp.zeros((2, groups.segments), jnp.uint32),
        ),
        wanted,
        groups,
        coarse_width=jnp.broadcast_to(top >> 8, shape),
        enough=lambda above, below: (
            above + below <= jnp.broadcast_to(margin / 4, shape)
        ),
    )
    is_tied = bracket.high[0] - bracket.low[0] == 1
    low = jnp.where(is_tied, bracket.low[0], bracket.high[0])
    high = jnp.maximum(bracket.high[1], low + 1)
    # Where more units are wanted than are live, the threshold is 0.
    is_zero = rank > at_first.as_float() + margin
    one = jnp.ones_like(low)
    return Guess(jnp.where(is_zero, one, low), jnp.where(is_zero, one + one, high))


def _ranks(
    samples: Samples, kept: Count, groups: Groups
) -> tuple[jax.Array, jax.Array]:
    """Which estimate to look for, and how far it may be off: float32 [groups] each."""

    def over_groups(per_segment: np.ndarray) -> np.ndarray:
        return per_segment.sum(keepdims=True) if groups.together else per_segment

    slices = [leaf.slices for leaf in samples.units]
    sizes = np.repeat([float(leaf.slice_size) for leaf in samples.units], slices)
    strides = samples.strides.astype(float)
    whole = np.maximum(over_groups(strides * samples.sizes), 1)
    rank = kept.as_float() * np.float32(whole / np.maximum(over_groups(sizes), 1))
    share = jnp.clip(rank / np.float32(whole), 0, 1)
    deviation = np.sqrt(over_groups(strides**2 * samples.sizes))
    step = strides.max(keepdims=True) if groups.together else strides
    margin = 1.25 * np.float32(deviation) * jnp.sqrt(share * (1 - share))
    return rank, margin + 4 * np.float32(step)


def _grid(leaf: Units) -> jax.Array:
    """The keys of a regular grid of the units of every slice."""
    pinned, _ = leaf.pinned()
    keys = pinned.keys()
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
    """Every so many positions of one axis, without moving any between devices.

    Devices hold an axis in equal parts. So it is taken apart into blocks as short as
    may be, of which none reaches over a part, and the positions are taken from each.
    """
    length, part = keys.shape[axis], part_of_device(keys, axis)
    stride = min(stride, part)
    block = next(n for n in range(stride, part + 1) if part % n == 0)
    shape = keys.shape
    blocks = keys.reshape(*shape[:axis], length // block, block, *shape[axis + 1 :])
    taken = jax.lax.slice_in_dim(blocks, stride // 2, block, stride, axis + 1)
    return taken.reshape(*shape[:axis], -1, *shape[axis + 1 :])
