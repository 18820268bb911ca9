"""Units: the keys by which weights, blocks and channels are ranked.

The key of a weight is made from the number that ranks it, its magnitude or its score
(`leaf.weight_keys`), again in every pass. A block or a channel is scored once, by the
largest or the mean of its weights' numbers. A block with a NaN, or else with an
infinity, has that for its score, plus infinity before minus infinity. A block is live
as long as one of its weights is, and a live block ranks above every pruned one, also
where its score is the lowest of all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.blocks import BlockedLeaf
from gradprune_jax._mask_update.leaf import weight_keys
from gradprune_jax._mask_update.means import SumUnits, mean_bits, unit_totals
from gradprune_jax._mask_update.pooling import LocalBlocks
from gradprune_jax._rules import Rule
from gradprune_jax._structures import Block, Channel, Pool, Shape
from gradprune_jax._top_k import (
    Count,
    Shard,
    Units,
    largest_key,
    ranking_dtype,
    ranking_keys,
    score_keys,
    select,
    wider_dtype,
)


def units_of_leaves(rule: Rule, leaves: Sequence[BlockedLeaf]) -> list[Units]:
    """The units of the rule's leaves; one dtype for all that are ranked together."""
    dtypes = [ranking_dtype(leaf.numbers.dtype) for leaf in leaves]
    if rule.allocation == "global":
        dtypes = [ranking_dtype(*dtypes)] * len(dtypes)
    return [
        _units_of_leaf(rule, leaf, dtype)
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]


def _made_before(keys: jax.Array, dtype: Any) -> jax.Array:
    """Keys that were made once for all passes."""
    del dtype
    return keys


def _units_of_leaf(rule: Rule, leaf: BlockedLeaf, dtype: Any) -> Units:
    """The units of a leaf: weights, keyed in every pass, or blocks, scored once."""
    axis = rule.stack_axis
    stack_axis = None if axis is None else axis % leaf.numbers.ndim
    slice_axes = () if stack_axis is None else (stack_axis,)
    if not isinstance(rule.structure, Block | Channel):
        return Units(
            (leaf.numbers, leaf.mask),
            first=None,
            make_keys=score_keys if leaf.signed else ranking_keys,
            dtype=dtype,
            slice_axes=slice_axes,
            shard=leaf.shard,
            signed=leaf.signed,
        )
    pool = rule.structure.pool
    dtype = wider_dtype(dtype, jnp.float32) if pool == "mean" else np.dtype(dtype)
    pooling = Pooling(pool, dtype, leaf.signed)
    keys = _pooled_keys(
        leaf.numbers, leaf.mask, leaf.block, leaf.shard, pooling, stack_axis
    )
    for axis, shard in leaf.gathered:  # to `shard_map` what was gathered still varies
        if shard.axis_names[axis]:
            keys = jax.lax.pmax(keys, shard.axis_names[axis])
    return units_of_keys(keys, pooling, leaf.shard.of_units(leaf.block), slice_axes)


def units_of_keys(
    keys: jax.Array, pooling: Pooling, shard: Shard, slice_axes: tuple[int, ...] = ()
) -> Units:
    """Units whose keys were made once for all passes."""
    return Units(
        (keys,),
        first=None,
        make_keys=_made_before,
        dtype=pooling.dtype,
        slice_axes=slice_axes,
        shard=shard,
        signed=pooling.signed,
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _pooled_keys(
    numbers: jax.Array,
    mask: jax.Array,
    block: Shape,
    shard: Shard,
    pooling: Pooling,
    stack_axis: int | None,
) -> jax.Array:
    """The scores of a leaf's blocks, as keys that rank them.

    Args:
      numbers: those that rank the weights of the leaf, or of its local piece, which
        holds whole blocks but along axes that a block spans.
      mask: bool of its shape.
      block: the lengths of a block.
      shard: where the piece lies in the whole leaf.
      pooling: how the numbers of a block make its score.
      stack_axis: the axis whose slices are scored apart, or None.

    Returns:
      Unsigned integers of the blocks' shape: 0 for a pruned block, the key of its score
      for a live one. Those of blocks that reach over devices are the same on each of
      these.
    """
    blocks = LocalBlocks(block, shard, numbers.shape)

    def keys() -> jax.Array:
        # Made anew for each reduction, in its loop: no array as large as the weights.
        own, live = jax.lax.optimization_barrier((numbers, mask))
        return weight_keys(own, live, pooling.dtype, signed=pooling.signed)

    highest = blocks.maximum(keys())
    if pooling.pool == "max":
        return highest
    return pooling.mean_keys(
        highest,
        highest > 0,
        lambda numbers_of: blocks.maximum(numbers_of(keys())),
        lambda numbers_of: blocks.sum(numbers_of(keys())),
        math.prod(block),
        blocks.sizes(),
        lambda finite: _over_slices(finite, stack_axis, shard.of_units(block)),
    )


class Pooling(NamedTuple):
    """How the numbers of a unit's weights make its score.

    Attributes:
      pool: their largest or their mean.
      dtype: the floating dtype of the scores.
      signed: whether numbers rank by their value; else by their magnitude.
    """

    pool: Pool
    dtype: Any
    signed: bool

    def mean_keys(
        self,
        highest: jax.Array,
        live: jax.Array,
        largest_of: SumUnits,
        sum_of: SumUnits,
        most: int,
        sizes: jax.Array,
        over_all: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """The keys of units that are scored by the mean number of their weights.

        A pruned weight counts as zero. Numbers above zero and those below it are summed
        apart, for sums are of magnitudes.

        Args:
          highest: the highest key among the weights of each unit.
          live: where a unit is not pruned yet, bool.
          largest_of: the largest of a function of keys over the weights of each unit.
          sum_of: its sum.
          most: how many weights a unit has at most.
          sizes: how many each has, uint32 that broadcast with the units.
          over_all: the largest of numbers of the units, to broadcast with them and with
            weights.

        Returns:
          Unsigned integers of the units' shape: 0 for a pruned unit, the key of its
          score for a live one.
        """
        infinity = np.asarray(largest_key(self.dtype) - 1, highest.dtype)

        def finite(largest: jax.Array) -> jax.Array:
            return jnp.where(largest < infinity, largest, 0)

        def totals(part: Callable[[jax.Array], jax.Array]) -> Count:
            def sum_units(numbers_of: Callable[[jax.Array], jax.Array]) -> jax.Array:
                return sum_of(lambda keys: numbers_of(part(keys)))

            return unit_totals(sum_units, most, top, self.dtype)

        if not self.signed:
            largest = _magnitudes(highest)
            top = over_all(finite(largest))
            means = mean_bits(totals(_magnitudes), most, sizes, top, self.dtype)
            scores = jnp.where(largest < infinity, means, largest)
            return jnp.where(live, scores + 1, 0)

        above_zero = functools.partial(_above_zero, zero=infinity)
        below_zero = functools.partial(_below_zero, zero=infinity)
        largest, lowest = largest_of(above_zero), largest_of(below_zero)
        top = over_all(jnp.maximum(finite(largest), finite(lowest)))
        above, below = totals(above_zero), totals(below_zero)
        is_above = above >= below
        difference = select(is_above, above - below, below - above)
        means = mean_bits(difference, most, sizes, top, self.dtype)
        scores = jnp.where(is_above, infinity + means, infinity - means)
        scores = jnp.where(lowest < infinity, scores, 0)
        scores = jnp.where(largest < infinity, scores, infinity + largest)
        return jnp.where(live, scores + 1, 0)


def _magnitudes(keys: jax.Array) -> jax.Array:
    """The bits of |w| from the keys that rank weights, 0 for pruned ones."""
    return jnp.maximum(keys, 1) - 1


def _above_zero(keys: jax.Array, zero: np.ndarray) -> jax.Array:
    """The bits of |s| from the keys of scores; 0 where they are not above zero."""
    return jnp.maximum(keys, zero + 1) - (zero + 1)


def _below_zero(keys: jax.Array, zero: np.ndarray) -> jax.Array:
    """The bits of |s| from the keys of scores; 0 where they are not below zero."""
    magnitudes = (zero + 1) - jnp.minimum(keys, zero + 1)
    return jnp.where(keys > 0, magnitudes, 0)


def _over_slices(numbers: jax.Array, stack_axis: int | None, shard: Shard) -> jax.Array:
    """The largest number of every slice of all units, to broadcast over weights."""
    axes = tuple(axis for axis in range(numbers.ndim) if axis != stack_axis)
    largest = jnp.max(numbers, axes, keepdims=True, initial=0)
    names = tuple(sorted(name for axis in axes for name in shard.axis_names[axis]))
    return jax.lax.pmax(largest, names) if names else largest
