"""Coupled channels in a plan: the units of each group, the weights of each leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from gradprune_jax._mask_update import kept_in_the_end, slices_of_groups
from gradprune_jax._plan.leaf import GroupPlan, LeafPlan
from gradprune_jax._program import ChannelGroup
from gradprune_jax._rules import Rule
from gradprune_jax._structures import CoupledChannels, units_of_indices


def plan_groups(
    position: int, rule: Rule, structure: CoupledChannels, leaves: Sequence[LeafPlan]
) -> tuple[list[LeafPlan], list[GroupPlan], int]:
    """The plans of the leaves of a rule of coupled channels, and of their groups.

    Args:
      position: of the rule.
      rule: the rule, with a schedule.
      structure: its structure.
      leaves: the leaves that it prunes.

    Returns:
      The leaves, the groups, and how many units all groups together keep. What each
      group keeps is not known under global allocation: there a leaf has no counts, and
      the sparsity that it would have if every group kept as large a part.
    """
    names = [leaf.path for leaf in leaves]
    groups = structure.groups_among(names)
    kept = kept_in_the_end(rule, slices_of_groups(groups))
    is_global = rule.allocation == "global"
    counts: list[int | None] = [None] * len(groups) if is_global else [*map(int, kept)]
    planned = [
        GroupPlan(position, group.name, group.size, count)
        for group, count in zip(groups, counts, strict=True)
    ]
    part = int(kept.sum()) / sum(group.size for group in groups)
    stays = {leaf.path: [np.ones(size, bool) for size in leaf.shape] for leaf in leaves}
    for group, count in zip(groups, counts, strict=True):
        _leave_out(group, round(part * group.size) if count is None else count, stays)
    found = []
    for leaf in leaves:
        own = int(np.prod([np.sum(axis) for axis in stays[leaf.path]], dtype=object))
        found.append(
            dataclasses.replace(
                leaf,
                rule=position,
                structure=structure,
                final_sparsity=1 - own / max(leaf.size, 1),
                kept_units=None if is_global else own,
                kept=None if is_global else own,
            )
        )
    return found, planned, int(kept.sum())


def _leave_out(
    group: ChannelGroup, kept: int, stays: dict[str, list[np.ndarray]]
) -> None:
    """Keep the first units of a group, for which any others of as many stand."""
    is_kept = np.arange(group.size) < kept
    for (name, axis), indices in zip(group.members, group.indices, strict=True):
        own = stays[name][axis]
        for units in units_of_indices(indices, len(own)):
            own &= np.where(units < 0, True, is_kept[np.maximum(units, 0)])
