"""Scores: the keys by which the units of a leaf are ranked.

A new score goes here. The key of a weight is made from its magnitude (`weight_keys`),
again in every pass. A block or a channel is scored once, by the largest or the mean of
its weights' magnitudes. A block with a NaN, or else with an infinity, has that for its
score. A block is live as long as one of its weights is, and a live block ranks above
every pruned one, also where its score is zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.blocks import BlockedLeaf
from gradprune_jax._mask_update.means import SumUnits, mean_keys
from gradprune_jax._mask_update.pooling import LocalBlocks
from gradprune_jax._rules import Rule
from gradprune_jax._structures import Block, Channel, Pool, Shape
from gradprune_jax._top_k import (
    Shard,
    Units,
    largest_key,
    ranking_dtype,
    ranking_keys,
    wider_dtype,
)


def units_of_leaves(rule: Rule, leaves: Sequence[BlockedLeaf]) -> list[Units]:
    """The units of the rule's leaves; one dtype for all that are ranked together."""
    dtypes = [ranking_dtype(leaf.weights.dtype) for leaf in leaves]
    if rule.allocation == "global":
        dtypes = [ranking_dtype(*dtypes)] * len(dtypes)
    return [
        _units_of_leaf(rule, leaf, dtype)
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]


def weight_keys(weights: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    """The key of every weight by its magnitude, 0 where it is pruned."""
    return ranking_keys(weights, mask, dtype)


def _made_before(keys: jax.Array, dtype: Any) -> jax.Array:
    """Keys that were made once for all passes."""
    del dtype
    return keys


def _units_of_leaf(rule: Rule, leaf: BlockedLeaf, dtype: Any) -> Units:
    """The units of a leaf: weights, keyed in every pass, or blocks, scored once."""
    axis = rule.stack_axis
    stack_axis = None if axis is None else axis % leaf.weights.ndim
    slice_axes = () if stack_axis is None else (stack_axis,)
    if not isinstance(rule.structure, Block | Channel):
        return Units(
            (leaf.weights, leaf.mask),
            first=None,
            make_keys=weight_keys,
            dtype=dtype,
            slice_axes=slice_axes,
            shard=leaf.shard,
        )
    pool = rule.structure.pool
    dtype = wider_dtype(dtype, jnp.float32) if pool == "mean" else np.dtype(dtype)
    keys = _pooled_keys(
        leaf.weights, leaf.mask, leaf.block, leaf.shard, pool, dtype, stack_axis
    )
    for axis, shard in leaf.gathered:  # to `shard_map` what was gathered still varies
        if shard.axis_names[axis]:
            keys = jax.lax.pmax(keys, shard.axis_names[axis])
    return units_of_keys(keys, dtype, leaf.shard.of_units(leaf.block), slice_axes)


def units_of_keys(
    keys: jax.Array, dtype: Any, shard: Shard, slice_axes: tuple[int, ...] = ()
) -> Units:
    """Units whose keys were made once for all passes."""
    return Units(
        (keys,),
        first=None,
        make_keys=_made_before,
        dtype=dtype,
        slice_axes=slice_axes,
        shard=shard,
    )


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _pooled_keys(
    weights: jax.Array,
    mask: jax.Array,
    block: Shape,
    shard: Shard,
    pool: Pool,
    dtype: Any,
    stack_axis: int | None,
) -> jax.Array:
    """The scores of a leaf's blocks, as keys that rank them.

    Args:
      weights: the leaf, or its local piece, which holds whole blocks but along axes
        that a block spans.
      mask: bool of its shape.
      block: the lengths of a block.
      shard: where the piece lies in the whole leaf.
      pool: how the magnitudes of a block make its score.
      dtype: the floating dtype of the scores.
      stack_axis: the axis whose slices are scored apart, or None.

    Returns:
      Unsigned integers of the blocks' shape: 0 for a pruned block, the bits of its
      score plus 1 for a live one. Those of blocks that reach over devices are the same
      on each of these.
    """
    blocks = LocalBlocks(block, shard, weights.shape)

    def keys() -> jax.Array:
        # Made anew for each reduction, in its loop: no array as large as the weights.
        own, live = jax.lax.optimization_barrier((weights, mask))
        return weight_keys(own, live, dtype)

    highest = blocks.maximum(keys())
    if pool == "max":
        return highest
    return mean_score_keys(
        highest,
        highest > 0,
        lambda numbers_of: blocks.sum(numbers_of(magnitudes(keys()))),
        math.prod(block),
        blocks.sizes(),
        lambda finite: _over_slices(finite, stack_axis, shard.of_units(block)),
        dtype,
    )


def mean_score_keys(
    highest: jax.Array,
    live: jax.Array,
    sum_units: SumUnits,
    most: int,
    sizes: jax.Array,
    over_all: Callable[[jax.Array], jax.Array],
    dtype: Any,
) -> jax.Array:
    """The keys of units that are scored by the mean magnitude of their weights.

    Args:
      highest: the highest key among the weights of each unit.
      live: where a unit is not pruned yet, bool.
      sum_units: sums a function of magnitudes over the weights of each unit.
      most: how many weights a unit has at most.
      sizes: how many each has, uint32 that broadcast with the units.
      over_all: the largest of numbers of the units, to broadcast with them and with
        weights.
      dtype: the floating dtype of the scores.

    Returns:
      Unsigned integers of the units' shape: 0 for a pruned unit, the bits of its score
      plus 1 for a live one.
    """
    largest = magnitudes(highest)
    infinity = np.asarray(largest_key(dtype) - 1, largest.dtype)
    top = over_all(jnp.where(largest < infinity, largest, 0))
    means = mean_keys(sum_units, most, sizes, top, dtype)
    scores = jnp.where(largest < infinity, means, largest)
    return jnp.where(live, scores + 1, 0)


def magnitudes(keys: jax.Array) -> jax.Array:
    """The bits of |w| from the keys that rank weights, 0 for pruned ones."""
    return jnp.maximum(keys, 1) - 1


def _over_slices(numbers: jax.Array, stack_axis: int | None, shard: Shard) -> jax.Array:
    """The largest number of every slice of all units, to broadcast over weights."""
    axes = tuple(axis for axis in range(numbers.ndim) if axis != stack_axis)
    largest = jnp.max(numbers, axes, keepdims=True, initial=0)
    names = tuple(sorted(name for axis in axes for name in shard.axis_names[axis]))
    return jax.lax.pmax(largest, names) if names else largest
