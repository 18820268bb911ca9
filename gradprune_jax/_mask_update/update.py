"""Mask update: the new masks of one rule, from its weights, masks and step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update import allocation
from gradprune_jax._mask_update.floors import channel_floors, density_floors
from gradprune_jax._mask_update.nm import group_kept, largest_of_groups
from gradprune_jax._mask_update.pooling import score_dtype, score_keys
from gradprune_jax._mask_update.slices import Segment
from gradprune_jax._rules.rule import Rule
from gradprune_jax._structures import (
    NM,
    Block,
    Channel,
    Shape,
    Unstructured,
    leaf_block,
    output_axis,
)
from gradprune_jax._top_k import Units, selection
from gradprune_jax._top_k.counts import Count, maximum, total
from gradprune_jax._top_k.keys import ranking_dtype, ranking_keys
from gradprune_jax._top_k.shards import Shard, parts


def update_masks(
    rule: Rule,
    step: jax.Array,
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    shards: Sequence[Shard],
) -> list[jax.Array]:
    r"""Prunes the units of smallest magnitude until the rule's sparsity is reached.

    $$
    m' = m \wedge \mathrm{top}_k(m, |w|)
    $$

    ranked by the mask first: a pruned unit comes after every live one, also after one
    that is zero. So min(k, live) units are kept, and a mask never grows.

    Args:
      rule: the rule, with a schedule.
      step: integer scalar, the step of the schedule.
      weights: its leaves, in the order of the tree.
      masks: their masks, bool.
      shards: where the leaves lie in whole arrays, inside `shard_map`.

    Returns:
      The new masks, bool.
    """
    leaves = [
        _Leaf.of(rule, *leaf) for leaf in zip(weights, masks, shards, strict=True)
    ]
    if isinstance(rule.structure, NM):
        selected = _select_in_groups(rule, rule.structure, step, leaves)
    else:
        selected = _select_units(rule, step, leaves)
    return [
        mask & leaf.own_part(new, mask.shape)
        for mask, leaf, new in zip(masks, leaves, selected, strict=True)
    ]


class _Leaf(NamedTuple):
    """One leaf, whole along every axis where a block would reach over devices.

    Attributes:
      weights: the leaf, or its local piece.
      mask: bool of its shape.
      shard: where the piece lies in the whole leaf.
      block: the lengths of a block of the rule's structure.
      gathered: the axes along which the piece was made whole, with its own shard.
    """

    weights: jax.Array
    mask: jax.Array
    shard: Shard
    block: Shape
    gathered: tuple[tuple[int, Shard], ...]

    @classmethod
    def of(cls, rule: Rule, weights: jax.Array, mask: jax.Array, shard: Shard) -> _Leaf:
        """The leaf of a rule, its pieces gathered only where they cut blocks."""
        structure = rule.structure or Unstructured()
        block = leaf_block(structure, shard.shape, rule.stack_axis)
        gathered = []
        for axis, length in enumerate(block):
            size = shard.shape[axis]
            part = size // parts(weights, shard, axis)
            # Blocks that span an axis are pooled over devices; groups of N:M are not.
            spans = length >= size and not isinstance(structure, NM)
            if length > 1 and not spans and part != size and part % length:
                gathered.append((axis, shard))
                weights, mask = (shard.gather(x, axis) for x in (weights, mask))
                shard = shard.without(axis)
        return cls(weights, mask, shard, block, tuple(gathered))

    def own_part(self, array: jax.Array, shape: Shape) -> jax.Array:
        """What of a mask of the gathered leaf belongs to the local piece."""
        for axis, shard in self.gathered:
            array = shard.own_part(array, axis, shape[axis], axis)
        return array

    def expand(self, kept_units: jax.Array) -> jax.Array:
        """True where a weight's unit is kept; broadcasts over axes that units span."""
        mask = kept_units
        for axis, (length, size) in enumerate(
            zip(self.block, self.weights.shape, strict=True)
        ):
            if 1 < length < self.shard.shape[axis]:
                mask = _repeat(mask, length, axis)
                mask = jax.lax.slice_in_dim(mask, 0, size, axis=axis)
        return mask


def _select_in_groups(
    rule: Rule, structure: NM, step: jax.Array, leaves: Sequence[_Leaf]
) -> list[jax.Array]:
    """The largest weights of every group of N:M."""
    schedule: Any = rule.schedule
    final = jnp.asarray(schedule.final_sparsity, jnp.float32)
    kept = group_kept(structure, schedule.sparsity(step), final)
    return [
        largest_of_groups(
            ranking_keys(leaf.weights, leaf.mask, ranking_dtype(leaf.weights.dtype)),
            leaf.block.index(structure.of),
            structure.of,
            kept,
        )
        for leaf in leaves
    ]


def _select_units(
    rule: Rule, step: jax.Array, leaves: Sequence[_Leaf]
) -> list[jax.Array]:
    """The units of the highest scores: weights, blocks or channels."""
    units = _units(rule, leaves)
    segments: list[Segment] = []
    for leaf, leaf_units in zip(leaves, units, strict=True):
        segments += [Segment.of_leaf(rule, leaf.shard.shape)] * leaf_units.slices
    budget = allocation.allocate(rule, segments, step)
    units, kept = _with_floors(rule, units, segments, budget)
    selected = selection.top_k(units, kept, together=budget.together)
    return [
        leaf.expand(kept_units)
        for leaf, kept_units in zip(leaves, selected, strict=True)
    ]


def _with_floors(
    rule: Rule,
    units: list[Units],
    segments: Sequence[Segment],
    budget: allocation.Budget,
) -> tuple[list[Units], Count]:
    """The units, those that a floor protects first, and how many to keep with them."""
    least = None
    if _may_be_nonzero(rule.min_per_channel):
        floors = channel_floors(rule.min_per_channel, segments)
        units = _protect(units, _first_of_channels(rule, units, floors))
        channels = np.array([segment.output_channels for segment in segments])
        least = dataclasses.replace(floors, low=floors.low * channels.astype(np.uint32))
    if budget.together and _may_be_nonzero(rule.min_density):
        floors = density_floors(rule.min_density, segments)
        least = floors if least is None else maximum(floors, least)
        units = _protect(units, selection.top_k(units, least))
    if least is None:
        return units, budget.kept
    if budget.together:
        least = total(least)
    return units, maximum(budget.kept, least)


def _protect(units: Sequence[Units], first: Sequence[jax.Array]) -> list[Units]:
    """The units, of which some are to be kept before all others."""
    return [leaf._replace(first=own) for leaf, own in zip(units, first, strict=True)]


def _first_of_channels(
    rule: Rule, units: Sequence[Units], floors: Count
) -> list[jax.Array]:
    """Marks the `floors` highest units of every output channel of every slice."""
    by_channel = [leaf.sliced(_channel_axes(rule, leaf)) for leaf in units]
    # All slices of a leaf have one floor, so all of their channels have.
    starts = np.cumsum([0, *(leaf.slices for leaf in units[:-1])])
    counts = np.array([leaf.slices for leaf in by_channel])
    kept = Count(
        jnp.repeat(floors.high[starts], counts), jnp.repeat(floors.low[starts], counts)
    )

    def select() -> list[jax.Array]:
        return selection.top_k(by_channel, kept)

    if not is_traced(rule.min_per_channel):
        return select()

    def none() -> list[jax.Array]:
        # Keys are never negative: all False, of the same type and layout.
        return [leaf.keys() < 0 for leaf in units]

    # Hyperparameters of `inject_hyperparams` are traced also where they are 0.
    return jax.lax.cond(rule.min_per_channel > 0, select, none)


def _channel_axes(rule: Rule, leaf: Units) -> tuple[int, ...]:
    """The axes along which slices and output channels of a leaf lie, ascending."""
    own = [axis for axis in range(len(leaf.shape)) if axis not in leaf.slice_axes]
    if not own:
        return leaf.slice_axes
    channels = own[output_axis(rule.output_axis, len(own))]
    return tuple(sorted((*leaf.slice_axes, channels)))


def _units(rule: Rule, leaves: Sequence[_Leaf]) -> list[Units]:
    """The units of the rule's leaves; one dtype for all that are ranked together."""
    dtypes = [ranking_dtype(leaf.weights.dtype) for leaf in leaves]
    if rule.allocation == "global":
        dtypes = [ranking_dtype(*dtypes)] * len(dtypes)
    return [
        _units_of_leaf(rule, leaf, dtype)
        for leaf, dtype in zip(leaves, dtypes, strict=True)
    ]


def _units_of_leaf(rule: Rule, leaf: _Leaf, dtype: Any) -> Units:
    """Weights, whose keys are made in every pass, or blocks, scored once."""
    axis = rule.stack_axis
    stack_axis = None if axis is None else axis % leaf.weights.ndim
    slice_axes = () if stack_axis is None else (stack_axis,)
    if not isinstance(rule.structure, Block | Channel):
        return Units.of_leaf(
            (leaf.weights, leaf.mask),
            functools.partial(ranking_keys, dtype=dtype),
            dtype=dtype,
            slice_axes=slice_axes,
            shard=leaf.shard,
        )
    pool = rule.structure.pool
    dtype = score_dtype(dtype, pool)
    scores = score_keys(
        leaf.weights,
        leaf.mask,
        block=leaf.block,
        pool=pool,
        dtype=dtype,
        stack_axis=stack_axis,
        shard=leaf.shard,
    )
    for axis, shard in leaf.gathered:  # to `shard_map` what was gathered still varies
        if shard.axis_names[axis]:
            scores = jax.lax.pmax(scores, shard.axis_names[axis])
    return Units.of_leaf(
        (scores,),
        lambda keys: keys,
        dtype=dtype,
        slice_axes=slice_axes,
        shard=leaf.shard.of_units(leaf.block),
    )


def _repeat(array: jax.Array, times: int, axis: int) -> jax.Array:
    """Every element of an axis so many times in a row, where it lies."""
    before, size, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    spread = jnp.expand_dims(array, axis + 1)
    spread = jnp.broadcast_to(spread, (*before, size, times, *after))
    return spread.reshape(*before, size * times, *after)


def _may_be_nonzero(number: Any) -> bool:
    """False only for a number known now to be zero."""
    return is_traced(number) or bool(number != 0)
