"""Dry run: the plan of a training, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._budget import Budget, as_budget
from gradprune_jax._geometry import leaf_block
from gradprune_jax._mask_update import (
    kept_in_the_end,
    slices_of_leaf,
)
from gradprune_jax._plan.checks import (
    check_floors,
    check_not_empty,
    check_schedule,
    check_shape,
    check_size,
)
from gradprune_jax._plan.coupled import plan_groups
from gradprune_jax._plan.fitting import fitted
from gradprune_jax._plan.leaf import GroupPlan, LeafPlan
from gradprune_jax._plan.table import Plan
from gradprune_jax._rules import (
    Allocation,
    Rule,
    ScheduleOrRules,
    Where,
    as_rules,
    assign,
    unmatched_matrices,
)
from gradprune_jax._schedules import extremes
from gradprune_jax._scores import AnyScore
from gradprune_jax._structures import (
    NM,
    CoupledChannels,
    Structure,
    Unstructured,
    counted,
)


def plan(
    schedule_or_rules: ScheduleOrRules,
    params: Any,
    *,
    total_steps: int | None = None,
    budget: int | Budget | None = None,
    where: Where | None = None,
    structure: Structure | None = None,
    allocation: Allocation = "uniform",
    stack_axis: int | None = None,
    min_density: float = 0.0,
    min_per_channel: int = 0,
    score: AnyScore | None = None,
    output_axis: int | None = None,
) -> Plan:
    """A dry run: which parameters are pruned, how far, when, and at what cost.

    Args:
      schedule_or_rules: a schedule or rules, as for `gradual_prune`.
      params: parameters, or their shapes from `jax.eval_shape`.
      total_steps: the number of optimizer updates of the training, to check that the
        last mask update falls within it.
      budget: what the model may have in the end, a number of non-zeros or a `Budget`.
        Polynomial and one-shot schedules then get the smallest final sparsity that
        fits, the same in all rules but N:M, in place of their own; the rules of the
        plan have it.
      where: which parameters to prune.
      structure: which weights are kept together.
      allocation: how the sparsity is shared out.
      stack_axis: the axis along which layers are stacked. It applies to every pruned
        leaf: where only some are stacked, write one rule for each kind.
      min_density: the fraction that each leaf keeps at least.
      min_per_channel: the weights that each output channel keeps at least.
      score: by what weights are ranked.
      output_axis: the axis of output channels; None is the last.

    Returns:
      The plan. `print(plan(...))` shows it as a table, and below it what looks wrong:
      weights that no rule matches, and axes that may not be the ones you meant.

    Raises:
      ValueError: if a rule matches nothing or a leaf that cannot be pruned, the window
        does not end within `total_steps`, a number is traced, a shape is not valid, a
        leaf is larger than a mask update can rank, or the budget cannot be kept or
        depends on the weights.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from gradprune_jax import polynomial_schedule
      >>> shapes = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
      >>> print(plan(polynomial_schedule(0.75, 0, 100, every=50), shapes))
      path    shape  dtype    rule  structure     sparsity  kept
      ------  -----  -------  ----  ------------  --------  ----
      kernel  8x4    float32  0     Unstructured  75.00 %   8
      rule 0 (where=is_weight, uniform): keeps 8 of 32 weights
        updates masks 3 times, steps 0 to 100
      total: 8 of 32 weights kept; masks take 32 bytes
      >>> planned = plan(polynomial_schedule(0.9, 0, 100, every=50), shapes, budget=12)
      >>> planned.kept, planned.rules[0].schedule.final_sparsity
      ((12,), 0.609375)
    """
    rules = as_rules(
        schedule_or_rules,
        where=where,
        structure=structure,
        allocation=allocation,
        stack_axis=stack_axis,
        min_density=min_density,
        min_per_channel=min_per_channel,
        score=score,
        output_axis=output_axis,
    )
    for position, rule in enumerate(rules):
        check_schedule(position, rule.schedule, total_steps)
        check_floors(position, rule)
    named = _tree.named_leaves(params)
    check_not_empty(rules, named)
    for named_leaf in named:
        check_shape(named_leaf)
    if budget is not None:
        rules = fitted(rules, as_budget(budget), lambda tried: _planned(tried, named))
    return _planned(rules, named)


def _planned(rules: tuple[Rule, ...], named: Sequence[_tree.Leaf]) -> Plan:
    """The plan of rules that were checked."""
    missed = {leaf.name for leaf in unmatched_matrices(rules, named)}
    leaves = [_dense(leaf, leaf.name in missed) for leaf in named]
    assigned = assign(rules, named)
    totals: list[tuple[int | None, int | None]] = []
    groups: list[GroupPlan] = []
    for position, rule in enumerate(rules):
        own = [i for i, owner in enumerate(assigned) if owner == position]
        of_rule = [leaves[i] for i in own]
        if rule.schedule and isinstance(rule.structure, CoupledChannels):
            planned, found, total = plan_groups(position, rule, rule.structure, of_rule)
            groups += found
            kept = [leaf.kept for leaf in planned if leaf.kept is not None]
            weights = sum(kept) if len(kept) == len(planned) else None
            units: int | None = total
        else:
            planned, units, weights = _plan_rule(position, rule, of_rule)
        totals.append((units, weights))
        for i, leaf in zip(own, planned, strict=True):
            leaves[i] = leaf
    return Plan(
        leaves=tuple(leaves),
        rules=rules,
        kept_units=tuple(units for units, _ in totals),
        kept=tuple(weights for _, weights in totals),
        update_steps=tuple(
            () if rule.schedule is None else rule.schedule.update_steps
            for rule in rules
        ),
        mask_bytes=sum(leaf.size for leaf in leaves if leaf.rule is not None),
        groups=tuple(groups),
    )


def _dense(leaf: _tree.Leaf, is_missed: bool) -> LeafPlan:
    """A parameter that stays as it is."""
    shape = np.shape(leaf.value)
    size = int(np.prod(shape, dtype=object))
    return LeafPlan(
        path=leaf.name,
        shape=shape,
        dtype=_dtype(leaf.value),
        size=size,
        rule=None,
        structure=None,
        final_sparsity=0.0,
        units=size,
        kept_units=size,
        kept=size,
        is_missed=is_missed,
    )


def _dtype(value: Any) -> Any:
    """The dtype of a parameter or of a Python number; no values are read."""
    return value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype


def _plan_rule(
    position: int, rule: Rule, leaves: Sequence[LeafPlan]
) -> tuple[list[LeafPlan], int | None, int | None]:
    """The plans of a rule's leaves, and the units and weights that all of them keep."""
    schedule = rule.schedule
    if schedule is None:
        return [], None, None
    if not leaves:
        return [], 0, 0
    blocks = [_unit(rule, leaf) for leaf in leaves]
    slices = [slices_of_leaf(rule, leaf.shape) for leaf in leaves]
    for leaf, own in zip(leaves, slices, strict=True):
        check_size(rule, leaf, own)
    kept = kept_in_the_end(rule, [each for own in slices for each in own])
    if rule.allocation == "global":
        of_leaves: list[int | None] = [None] * len(leaves)
    else:
        ends = np.cumsum([len(own) for own in slices])
        of_leaves = [int(own.sum()) for own in np.split(kept, ends[:-1])]
    has_own_sparsity = (
        rule.allocation == "erk"
        or isinstance(rule.structure, NM)
        or rule.min_per_channel > 0
    )
    (sparsest, _), _ = extremes(schedule)
    plans = []
    for leaf, block, own, units_kept in zip(
        leaves, blocks, slices, of_leaves, strict=True
    ):
        units = sum(each.units for each in own)
        final = float(sparsest)
        if units_kept is not None and has_own_sparsity:
            final = 1 - units_kept / max(units, 1)
        plans.append(
            dataclasses.replace(
                leaf,
                rule=position,
                structure=rule.structure or Unstructured(),
                final_sparsity=final,
                units=units,
                kept_units=units_kept,
                kept=_weights_of(units_kept, {_unit_size(leaf, block)}),
            )
        )
    total = int(kept.sum())
    weights = [leaf.kept for leaf in plans if leaf.kept is not None]
    if len(weights) == len(plans):
        return plans, total, sum(weights)
    sizes = {_unit_size(*pair) for pair in zip(leaves, blocks, strict=True)}
    return plans, total, _weights_of(total, sizes)


def _unit(rule: Rule, leaf: LeafPlan) -> tuple[int, ...]:
    """The shape of a unit of a leaf."""
    return leaf_block(counted(rule.structure), leaf.shape, rule.stack_axis)


def _unit_size(leaf: LeafPlan, block: tuple[int, ...]) -> int | None:
    """The weights of every unit of a leaf; None if some are cut short."""
    if any(size % length for size, length in zip(leaf.shape, block, strict=True)):
        return None
    return math.prod(block)


def _weights_of(units: int | None, unit_sizes: set[int | None]) -> int | None:
    """The weights of so many units, if all units have one known size."""
    if units is None or None in unit_sizes or len(unit_sizes) != 1:
        return None
    (size,) = unit_sizes
    return units * (size or 0)
