"""Fitting: the sparsity with which a rule keeps a budget."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._budget import Budget, smallest_sparsity
from gradprune_jax._checks import is_traced
from gradprune_jax._plan import cost_of, dense_names, plan
from gradprune_jax._prune.masks import masks_of_rule
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._state import is_dense
from gradprune_jax._structures import NM


def fitted(rule: Rule, params: Any, gradients: Any, budget: Budget) -> Rule:
    """The rule with the smallest sparsity whose masks keep the budget."""
    leaves = _tree.named_leaves(params)
    if isinstance(rule.structure, NM):
        raise ValueError(f"structure is {rule.structure}, which has its own sparsity.")
    if any(is_traced(leaf.value) for leaf in leaves):
        raise ValueError(
            "budget is searched for with the weights, which are traced here; call "
            "prune outside of jit, or give the sparsity."
        )
    treedef: Any = jax.tree.structure(params)

    def at(sparsity: float) -> Rule:
        return dataclasses.replace(rule, schedule=one_shot_schedule(sparsity, 0))

    def cost_at(sparsity: float) -> int:
        planned = cost_of(plan([at(sparsity)], params), budget)
        if planned is not None:
            return planned
        masks = treedef.flatten_up_to(masks_of_rule(at(sparsity), params, gradients))
        return sum(
            budget.cost(np.shape(leaf.value), leaf.value.dtype.itemsize, kept)
            for leaf, kept in zip(leaves, map(_kept, leaves, masks), strict=True)
            if jnp.issubdtype(leaf.value.dtype, jnp.floating)
        )

    dense = dense_names(plan([rule], params))
    return at(smallest_sparsity(cost_at, budget, 0.0, dense))


def _kept(leaf: _tree.Leaf, mask: Any) -> int:
    """The weights that a leaf keeps: all of them where it is dense."""
    size = math.prod(np.shape(leaf.value))
    return size if is_dense(mask) else int(jnp.sum(mask, dtype=jnp.uint32))
