"""Scores: the keys by which the units of a leaf are ranked.

A new score goes here. The key of a weight is made from its magnitude (`weight_keys`),
again in every pass. A block or a channel is scored once, by the largest or the mean of
its weights' magnitudes. A block with a NaN, or else with an infinity, has that for its
score. A block is live as long as one of its weights is, and a live block ranks above
every pruned one, also where its score is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.blocks import BlockedLeaf
from gradprune_jax._mask_update.means import mean_keys
from gradprune_jax._mask_update.pooling import LocalBlocks
from gradprune_jax._rules import Rule
from gradprune_jax._structures import Block, Channel, Pool
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


def _units_of_leaf(rule: Rule, leaf: BlockedLeaf, dtype: Any) -> Units:
    """The units of a leaf: weights, keyed in every pass, or blocks, scored once."""
    axis = rule.stack_axis
    stack_axis = None if axis is None else axis % leaf.weights.ndim
    slice_axes = () if stack_axis is None else (stack_axis,)
    if not isinstance(rule.structure, Block | Channel):
        return Units.of_leaf(
            (leaf.weights, leaf.mask),
            functools.partial(weight_keys, dtype=dtype),
            dtype=dtype,
            slice_axes=slice_axes,
            shard=leaf.shard,
        )
    dtype, keys = _pooled_keys(leaf, rule.structure.pool, dtype, stack_axis)
    for axis, shard in leaf.gathered:  # to `shard_map` what was gathered still varies
        if shard.axis_names[axis]:
            keys = jax.lax.pmax(keys, shard.axis_names[axis])
    return Units.of_leaf(
        (keys,),
        lambda keys: keys,
        dtype=dtype,
        slice_axes=slice_axes,
        shard=leaf.shard.of_units(leaf.block),
    )


def _pooled_keys(
    leaf: BlockedLeaf, pool: Pool, dtype: Any, stack_axis: int | None
) -> tuple[np.dtype, jax.Array]:
    """The scores of a leaf's blocks, as keys that rank them.

    Args:
      leaf: the leaf, or its local piece, which holds whole blocks but along axes that a
        block spans.
      pool: how the magnitudes of a block make its score.
      dtype: the floating dtype in which weights are ranked.
      stack_axis: the axis whose slices are scored apart, or None.

    Returns:
      The floating dtype of the scores, and unsigned integers of the blocks' shape: 0
      for a pruned block, the bits of its score plus 1 for a live one. Those of blocks
      that reach over devices are the same on each of these.
    """
    dtype = wider_dtype(dtype, jnp.float32) if pool == "mean" else np.dtype(dtype)
    blocks = LocalBlocks(leaf.block, leaf.shard, leaf.weights.shape)

    def keys() -> jax.Array:
        # Made anew for each reduction, in its loop: no array as large as the weights.
        weights, mask = jax.lax.optimization_barrier((leaf.weights, leaf.mask))
        return weight_keys(weights, mask, dtype)

    highest = blocks.maximum(keys())
    if pool == "max":
        return dtype, highest
    largest = _magnitudes(highest)
    infinity = np.asarray(largest_key(dtype) - 1, largest.dtype)
    finite = jnp.where(largest < infinity, largest, 0)
    top = _over_slices(finite, stack_axis, leaf.shard.of_units(leaf.block))
    means = mean_keys(lambda: _magnitudes(keys()), top, blocks, dtype)
    scores = jnp.where(largest < infinity, means, largest)
    return dtype, jnp.where(highest > 0, scores + 1, 0)


def _magnitudes(keys: jax.Array) -> jax.Array:
    """The bits of |w| from the keys that rank weights, 0 for pruned ones."""
    return jnp.maximum(keys, 1) - 1


def _over_slices(numbers: jax.Array, stack_axis: int | None, shard: Shard) -> jax.Array:
    """The largest number of every slice of all units, to broadcast over weights."""
    axes = tuple(axis for axis in range(numbers.ndim) if axis != stack_axis)
    largest = jnp.max(numbers, axes, keepdims=True, initial=0)
    names = tuple(sorted(name for axis in axes for name in shard.axis_names[axis]))
    return jax.lax.pmax(largest, names) if names else largest
