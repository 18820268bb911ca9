"""Scoring: what scores read, and what they carry from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax import _tree
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._rules import Rule, assign
from gradprune_jax._scores import score_dtype
from gradprune_jax._state import zeros_laid_out_like
from gradprune_jax._transform.leaves import LeafUpdate, UpdateTree, flatten
from gradprune_jax._transform.partition_specs import shards


def accumulates(rules: Sequence[Rule]) -> bool:
    """Whether the score of any rule carries numbers from step to step."""
    return any(rule.score is not None and rule.score.accumulates for rule in rules)


def check_needs_none(rules: Sequence[Rule], reason: str) -> None:
    """Refuses scores that read gradients, where for some reason there are none."""
    for rule in rules:
        if rule.score is not None and rule.score.needs_gradients:
            raise ValueError(
                f"the score is {rule.score}, which reads gradients; {reason}."
            )


def new_scores(rules: Sequence[Rule], params: Any, partition_specs: Any) -> Any:
    """What scores have accumulated before the first step: zeros.

    Args:
      rules: the rules.
      params: the parameters.
      partition_specs: inside `shard_map`, their specs.

    Returns:
      A tree like the parameters', `MaskedNode` where nothing is accumulated.
    """
    leaves = _tree.named_leaves(params)
    placement = shards(params, partition_specs, may_be_whole=True)
    assigned = assign(rules, leaves, [shard.shape for shard in placement])
    states = [
        zeros_laid_out_like(leaf.value, score_dtype(leaf.value.dtype))
        if position is not None and accumulates([rules[position]])
        else optax.MaskedNode()
        for leaf, position in zip(leaves, assigned, strict=True)
    ]
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(states)


def with_scores(rules: Sequence[Rule], tree: UpdateTree, scores: Any) -> UpdateTree:
    """The leaves with the gradients that scores read, and what these accumulate.

    Args:
      rules: the rules.
      tree: the leaves, whose updates are gradients still.
      scores: the scores of the state; None if no score accumulates.

    Returns:
      The leaves, with the scores after this gradient.
    """
    states: Any = [None] * len(tree.leaves)
    if scores is not None:
        states = flatten(
            tree.treedef,
            scores,
            "the scores' tree does not fit the parameters'; was the state made by init "
            "on the same parameters?",
        )
    leaves = [
        _scored(rules, leaf, state)
        for leaf, state in zip(tree.leaves, states, strict=True)
    ]
    return tree._replace(leaves=leaves)


def scores_of(tree: UpdateTree) -> Any:
    """The scores of leaves, as a state holds them."""
    states = [
        optax.MaskedNode() if leaf.score_state is None else leaf.score_state
        for leaf in tree.leaves
    ]
    return tree.treedef.unflatten(states)


def _check_scores(leaf: LeafUpdate, state: Any) -> None:
    """Refuses scores that another rule has made, or a restore has changed."""
    wanted = jnp.dtype(score_dtype(leaf.weight.dtype)), leaf.weight.shape
    if (getattr(state, "dtype", None), getattr(state, "shape", None)) != wanted:
        is_array = hasattr(state, "dtype")
        found = f"{state.dtype}{list(state.shape)}" if is_array else "missing"
        raise ValueError(
            f"the scores of {leaf.name!r} are {found}; they must be {wanted[0]}"
            f"{list(wanted[1])}. A state goes on only with the rules that it was made "
            "by; was it restored into another dtype or shape?"
        )


def _scored(rules: Sequence[Rule], leaf: LeafUpdate, state: Any) -> LeafUpdate:
    """A leaf with its gradient and the new state of its score."""
    score = None if leaf.rule is None else rules[leaf.rule].score
    if score is None or not score.needs_gradients or leaf.update is None:
        return leaf
    gradient = leaf.fitting("gradient", leaf.update)
    if not score.accumulates:
        return leaf._replace(gradient=gradient)
    _check_scores(leaf, state)
    state = laid_out_like(state, leaf.weight)
    state = score.accumulate(state, leaf.weight, gradient)
    return leaf._replace(gradient=gradient, score_state=state)
