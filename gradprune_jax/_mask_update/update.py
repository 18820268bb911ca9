"""One rule's mask update: which of its weights stay live.

Weights stay where their mask is True already and they are among the largest: the new
mask is the old one and the top k. So masks never grow, and exactly as many live weights
stay as the budget says, as long as there are so many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._geometry import output_axis
from gradprune_jax._mask_update.allocation import allocate
from gradprune_jax._mask_update.blocks import BlockedLeaf
from gradprune_jax._mask_update.coupled import groups_of_leaves, select_coupled
from gradprune_jax._mask_update.floors import protect
from gradprune_jax._mask_update.leaf import PrunedLeaf, RankedLeaf
from gradprune_jax._mask_update.nm import select_in_groups
from gradprune_jax._mask_update.slices import slices_of_groups, slices_of_leaf
from gradprune_jax._mask_update.units import units_of_leaves
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import progress
from gradprune_jax._structures import NM, CoupledChannels
from gradprune_jax._top_k import Count, Units, array_namespace, top_k


def update_masks(
    rule: Rule, step: jax.Array, leaves: Sequence[PrunedLeaf]
) -> list[jax.Array]:
    r"""Prunes the units of the lowest score until the rule's sparsity is reached.

    $$
    m' = m \wedge \mathrm{top}_k(m, s)
    $$

    with s the magnitude $|w|$, or what the rule's score makes of a weight, and
    ranked by the mask first: a pruned unit comes after every live one, also after one
    that is zero. So min(k, live) units are kept, and a mask never grows.

    Args:
      rule: the rule, with a schedule.
      step: integer scalar, the step of the schedule.
      leaves: the leaves that the rule prunes, in the order of the tree.

    Returns:
      The new masks, bool, one a leaf.

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
      2017, section 3.
    """
    ranked = [leaf.ranked(rule.score) for leaf in leaves]
    if isinstance(rule.structure, CoupledChannels):
        stays = _select_coupled(rule, rule.structure, step, ranked)
        return [leaf.mask & own for leaf, own in zip(leaves, stays, strict=True)]
    blocked = [BlockedLeaf.of(rule, leaf) for leaf in ranked]
    if isinstance(rule.structure, NM):
        selected = select_in_groups(rule, rule.structure, step, blocked)
    else:
        selected = _select_units(rule, step, blocked)
    return [
        leaf.mask & whole.own_part(new, leaf.mask.shape)
        for leaf, whole, new in zip(leaves, blocked, selected, strict=True)
    ]


def _select_units(
    rule: Rule, step: jax.Array, leaves: Sequence[BlockedLeaf]
) -> list[jax.Array]:
    """Marks the weights of the highest units: weights, blocks or channels."""
    slices = [
        each for leaf in leaves for each in slices_of_leaf(rule, leaf.shard.shape)
    ]
    schedule: Any = rule.schedule
    done = progress(schedule, step) if rule.allocation == "erk" else None
    budget = allocate(rule, slices, schedule.sparsity(step), done)
    units = units_of_leaves(rule, leaves)
    if budget.of_channels is not None:
        first = _first_of_channels(rule, units, budget.of_channels)
        units = protect(units, first)
    if budget.of_slices is not None:
        units = protect(units, top_k(units, budget.of_slices))
    selected = top_k(units, budget.kept, together=budget.together)
    return [
        leaf.expand(kept_units)
        for leaf, kept_units in zip(leaves, selected, strict=True)
    ]


def _select_coupled(
    rule: Rule,
    structure: CoupledChannels,
    step: jax.Array,
    leaves: Sequence[RankedLeaf],
) -> list[jax.Array]:
    """Marks the weights of the highest units of every group of coupled channels."""
    groups = groups_of_leaves(structure, leaves)
    schedule: Any = rule.schedule
    slices = slices_of_groups([group for group, _ in groups])
    budget = allocate(rule, slices, schedule.sparsity(step), None)
    return select_coupled(structure, [own for _, own in groups], budget, leaves)


def _first_of_channels(
    rule: Rule, units: Sequence[Units], floors: Count
) -> list[jax.Array]:
    """Marks the `floors` highest units of every output channel of every slice."""
    by_channel = [
        dataclasses.replace(leaf, slice_axes=_channel_axes(rule, leaf))
        for leaf in units
    ]
    channels = [
        own.slices // leaf.slices
        for leaf, own in zip(units, by_channel, strict=True)
        for _ in range(leaf.slices)
    ]
    times = np.array(channels, int)
    xp = array_namespace(floors.high, floors.low)
    kept = Count(xp.repeat(floors.high, times), xp.repeat(floors.low, times))

    def select() -> list[jax.Array]:
        return top_k(by_channel, kept)

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
