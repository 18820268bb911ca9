"""Targets: how sparse a user wants each weight, and along which axis N:M lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradprune_jax._calibration.method import Target
from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.views import Axes
from gradprune_jax._checks import (
    as_number,
    check_sparsity,
    is_traced,
    may_be_nonzero,
)
from gradprune_jax._mask_update import kept_in_the_end, slices_of_leaf
from gradprune_jax._rules import Rule, as_rules, assign
from gradprune_jax._schedules import extremes, is_concrete, one_shot_schedule
from gradprune_jax._structures import NM, Unstructured
from gradprune_jax._tree import Leaf


def rules_of(given: Any, **fields: Any) -> tuple[Rule, ...]:
    """The rules that a user wrote as a sparsity, a schedule, or rules."""
    if is_traced(given):
        raise ValueError("the sparsity is traced; call prune_calibrated outside jit.")
    if as_number(given) is not None:
        given = one_shot_schedule(check_sparsity("sparsity", given), 0)
    rules = as_rules(given, **fields)
    for rule in rules:
        _check_rule(rule)
    return rules


def _check_rule(rule: Rule) -> None:
    """Refuses what a rule may say of pruning without inputs alone."""
    if not isinstance(rule.structure or Unstructured(), Unstructured | NM):
        raise ValueError(
            f"structure is {rule.structure!r} ({rule}); with inputs weights are pruned "
            "unstructured or in groups of NM."
        )
    if rule.allocation == "global":
        raise ValueError(
            f"allocation is 'global' ({rule}), which compares weights that are pruned "
            "one after the other; give 'uniform' or 'erk'."
        )
    if rule.score is not None:
        raise ValueError(
            f"score is {rule.score!r} ({rule}); with inputs the method ranks weights. "
            "Leave it out, or use prune with a score of input_norms."
        )
    if may_be_nonzero(rule.min_per_channel):
        raise ValueError(
            f"min_per_channel is {rule.min_per_channel!r} ({rule}), a floor that no "
            "method keeps; leave it out. Wanda keeps as many weights of every output."
        )
    if rule.schedule is not None and not is_concrete(rule.schedule):
        raise ValueError(
            f"the schedule of the rule ({rule}) is traced; call prune_calibrated "
            "outside jit."
        )


def targets_of(rules: Sequence[Rule], leaves: Sequence[Leaf]) -> dict[int, Target]:
    """The target of every leaf that is pruned, by its position.

    Raises:
      ValueError: if a rule matches nothing or does not fit, or all leave dense.
    """
    assigned = assign(rules, leaves)
    targets: dict[int, Target] = {}
    for position, rule in enumerate(rules):
        own = [i for i, winner in enumerate(assigned) if winner == position]
        targets |= _targets_of_rule(rule, leaves, own)
    if not targets:
        raise ValueError("every rule leaves its parameters dense: none has a schedule.")
    return targets


def axes_of(product: Product, target: Target) -> Axes:
    """The axes along which a method sees the weights of a product.

    Raises:
      ValueError: if the groups of N:M do not lie along inputs.
    """
    if target.axis is not None and target.axis not in product.input_axes:
        axes = " and ".join(map(str, product.input_axes)) or "none"
        raise ValueError(
            f"the groups of {target.pattern!r} lie along axis {target.axis} of "
            f"{target.name!r}, whose inputs lie along axis {axes} ({product.name}); "
            "give NM that axis."
        )
    return product.axes(target.axis)


def _targets_of_rule(
    rule: Rule, leaves: Sequence[Leaf], own: Sequence[int]
) -> dict[int, Target]:
    """How sparse one rule makes each of its leaves."""
    if rule.schedule is None or not own:
        return {}
    sparsities = [max(sparsity for sparsity, _ in extremes(rule.schedule))] * len(own)
    if rule.allocation == "erk":
        slices = [slices_of_leaf(rule, leaves[i].value.shape) for i in own]
        kept = iter(kept_in_the_end(rule, [each for leaf in slices for each in leaf]))
        sparsities = [
            np.float32(
                1 - sum(next(kept) for _ in leaf) / max(sum(e.units for e in leaf), 1)
            )
            for leaf in slices
        ]
    pattern = rule.structure if isinstance(rule.structure, NM) else None
    return {
        i: Target(
            leaves[i].name, float(sparsity), pattern, _pattern_axis(rule, leaves[i])
        )
        for i, sparsity in zip(own, sparsities, strict=True)
    }


def _pattern_axis(rule: Rule, leaf: Leaf) -> int | None:
    """The axis of a leaf along which the groups of N:M lie; None without N:M."""
    if not isinstance(rule.structure, NM):
        return None
    axes = [*range(len(leaf.value.shape))]
    if rule.stack_axis is not None:
        axes.remove(axes[rule.stack_axis])
    return axes[rule.structure.axis]
