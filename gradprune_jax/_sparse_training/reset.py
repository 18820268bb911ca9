"""Reset: the optimizer's state of weights that were dropped or grown begins anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax._in_place import update_if
from gradprune_jax._layouts import where_laid_out
from gradprune_jax._state import is_dense


def reset_where(inner_state: Any, changed: Any, is_due: jax.Array) -> Any:
    """Sets to zero what an optimizer holds for some weights.

    Where nothing is due the state stays as it is, which costs nothing: to select at
    every step would read and write it once more. The parts of the state that are trees
    like the parameters' are told by their structure: to ask `init` for them, as
    `optax.tree.map_params` does, is not possible where a line search is inside.

    Args:
      inner_state: the optimizer's state.
      changed: a tree like the parameters': bool of a leaf's shape, or a scalar False.
      is_due: whether anything may have changed.

    Returns:
      The state. Only arrays of a parameter's own shape are changed: what is factored,
      or kept for several weights together, stays.
    """

    def is_like_parameters(node: Any) -> bool:
        pairs = _side_by_side(node, changed)
        return pairs is not None and any(_are_alike(*pair) for pair in pairs)

    def reset(inner_state: Any, changed: Any) -> Any:
        return jax.tree.map(
            lambda node: _reset(node, changed) if is_like_parameters(node) else node,
            inner_state,
            is_leaf=is_like_parameters,
        )

    return update_if(is_due, reset, inner_state, changed)


def _side_by_side(held: Any, changed: Any) -> list[tuple[Any, Any]] | None:
    """What stands where the parameters are; None if a level above them differs.

    An optimizer may hold several arrays where a parameter is, or a `MaskedNode` where
    `optax.partition` gives it to another one.
    """
    if isinstance(changed, jax.Array) or is_dense(held):
        return [(held, changed)]
    level = _level(changed)
    if _level(held) != level:
        return None
    pairs: list[tuple[Any, Any]] = []
    for below in zip(
        level.flatten_up_to(held), level.flatten_up_to(changed), strict=True
    ):
        found = _side_by_side(*below)
        if found is None:
            return None
        pairs += found
    return pairs


def _are_alike(held: Any, changed: Any) -> bool:
    """Whether an optimizer holds a number for each weight that may change."""
    return isinstance(held, jax.Array) and changed.ndim and held.shape == changed.shape


def _reset(held: Any, changed: Any) -> Any:
    """The state of one subtree of the parameters, level by level."""
    if isinstance(changed, jax.Array):
        if not _are_alike(held, changed):
            return held
        return where_laid_out(changed, jnp.zeros_like(held), held)
    if is_dense(held):
        return held
    level = _level(held)
    below = zip(level.flatten_up_to(held), level.flatten_up_to(changed), strict=True)
    return level.unflatten([_reset(*pair) for pair in below])


def _level(node: Any) -> Any:
    """The structure of a node, its children taken for leaves."""
    return jax.tree.structure(node, is_leaf=lambda below: below is not node)
