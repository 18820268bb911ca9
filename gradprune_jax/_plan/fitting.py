"""Fitting: the sparsity with which rules keep a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from gradprune_jax._budget import Budget, smallest_sparsity
from gradprune_jax._plan.leaf import LeafPlan
from gradprune_jax._plan.table import Plan
from gradprune_jax._rules import Rule
from gradprune_jax._structures import NM

Rules = tuple[Rule, ...]


def fitted(rules: Rules, budget: Budget, planned: Callable[[Rules], Plan]) -> Rules:
    """The rules with the smallest final sparsity that keeps the budget.

    Args:
      rules: the rules.
      budget: what the model may have.
      planned: makes the plan of rules.

    Raises:
      ValueError: if no rule's sparsity is free, the budget is too small, or what is
        kept depends on the weights.
    """
    free = [i for i, rule in enumerate(rules) if _is_free(i, rule)]
    if not free:
        raise ValueError(
            "no rule has a sparsity that can be chosen for the budget: dense rules "
            "have none, and N:M has its own."
        )
    schedules: dict[int, Any] = {i: rules[i].schedule for i in free}

    def at(sparsity: float) -> Rules:
        changed = list(rules)
        for i, schedule in schedules.items():
            new = dataclasses.replace(schedule, final_sparsity=sparsity)
            changed[i] = dataclasses.replace(rules[i], schedule=new)
        return tuple(changed)

    def cost_at(sparsity: float) -> int:
        cost = cost_of(planned(at(sparsity)), budget)
        if cost is None:
            other = "" if budget.nbytes is None else "a budget of non-zeros, or "
            raise ValueError(
                "what a rule keeps of each parameter is known only from the weights "
                "(global allocation, or blocks of several sizes), so its sparsity "
                f"cannot be planned for a budget of {budget}. Give {other}"
                "prune(params, budget=...), which reads the weights."
            )
        return cost

    least = max(float(each.initial_sparsity) for each in schedules.values())
    dense = dense_names(planned(rules))
    return at(smallest_sparsity(cost_at, budget, least, dense))


def _is_free(position: int, rule: Rule) -> bool:
    """Whether a rule's final sparsity can be chosen."""
    if rule.schedule is None or isinstance(rule.structure, NM):
        return False
    if rule.schedule.fn is not None:
        raise ValueError(
            f"the schedule of rule {position} is a function, whose final sparsity "
            "cannot be chosen for a budget; give a polynomial or one-shot schedule."
        )
    return True


def cost_of(planned: Plan, budget: Budget) -> int | None:
    """What the planned model costs; None if that depends on the weights."""
    total = sum(
        budget.cost(leaf.shape, leaf.dtype.itemsize, leaf.size)
        for leaf in planned.dense
        if _counts(leaf)
    )
    for position in range(len(planned.rules)):
        own = [leaf for leaf in planned.pruned if leaf.rule == position]
        kept = planned.kept[position]
        known = [leaf.kept for leaf in own if leaf.kept is not None]
        if len(known) == len(own):
            total += sum(
                budget.cost(leaf.shape, leaf.dtype.itemsize, count)
                for leaf, count in zip(own, known, strict=True)
            )
        elif kept is not None and budget.nbytes is None:
            total += kept
        else:
            return None
    return total


def dense_names(planned: Plan) -> list[str]:
    """The floating parameters that stay dense, to be named where nothing fits."""
    return [leaf.path for leaf in planned.dense if _counts(leaf)]


def _counts(leaf: LeafPlan) -> bool:
    """Whether a parameter counts: floating ones do."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
