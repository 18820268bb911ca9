"""Checks: what cannot be planned, refused by the name of the leaf or the rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import check_integer, is_traced
from gradprune_jax._mask_update import LARGEST_LEAF, Slice
from gradprune_jax._plan.leaf import LeafPlan
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import SparsitySchedule, is_concrete
from gradprune_jax._structures import NM


def check_not_empty(rules: Sequence[Rule], leaves: Sequence[_tree.Leaf]) -> None:
    """Refuses parameters without leaves, of which no rule matches one."""
    if not leaves:
        raise ValueError(
            f"the parameters have no leaves, so rule 0 ({rules[0]}) matches none."
        )


def check_shape(leaf: _tree.Leaf) -> None:
    """Refuses a shape that no array has, as files and hand-written shapes may."""
    shape = np.shape(leaf.value)
    if not all(isinstance(n, int | np.integer) and type(n) is not bool for n in shape):
        raise ValueError(f"{leaf.name!r} has shape {shape}; lengths must be integers.")
    if min(shape, default=0) < 0:
        raise ValueError(f"{leaf.name!r} has shape {shape}; no length is below 0.")


def check_floors(position: int, rule: Rule) -> None:
    """Refuses a rule whose floors are known only when a program runs."""
    for name in ("min_density", "min_per_channel"):
        if is_traced(getattr(rule, name)):
            raise ValueError(
                f"{name} of rule {position} is traced; plan needs numbers."
            )


def check_schedule(
    position: int, schedule: SparsitySchedule | None, total_steps: int | None
) -> None:
    """Refuses a schedule that cannot be planned, or does not end within training."""
    if schedule is None:
        return
    if not is_concrete(schedule):
        raise ValueError(
            f"the schedule of rule {position} has traced fields; plan needs numbers."
        )
    if is_traced(total_steps):
        raise ValueError("total_steps is traced; plan needs a number.")
    if total_steps is not None:
        check_integer("total_steps", total_steps, minimum=1)
    if total_steps is not None and schedule.end_step >= total_steps:
        raise ValueError(
            f"the schedule of rule {position} has end_step={schedule.end_step}, but "
            f"the last of {total_steps} updates is step {total_steps - 1}: its final "
            f"mask update would never happen. Set end_step to {total_steps - 1} or "
            "less."
        )


def check_size(rule: Rule, leaf: LeafPlan, slices: Sequence[Slice]) -> None:
    """Refuses a leaf of more weights or blocks than a mask update can rank."""
    units = max((each.units for each in slices), default=0)
    if units > LARGEST_LEAF and not isinstance(rule.structure, NM):
        raise ValueError(
            f"{leaf.path!r} has {units:,} weights or blocks that are ranked together; "
            f"at most {LARGEST_LEAF:,} can be. Split it, or give its stack_axis."
        )
