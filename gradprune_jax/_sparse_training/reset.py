"""Reset: the optimizer's state of weights that were dropped or grown begins anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax._layouts import where_laid_out
from gradprune_jax._state import is_dense


def reset_where(
    inner: optax.GradientTransformation,
    inner_state: Any,
    changed: Any,
    is_due: jax.Array,
) -> Any:
    """Sets to zero what an optimizer holds for some weights.

    Where nothing is due the state is handed on, which costs nothing: to select at every
    step would read and write it once more.

    Args:
      inner: the optimizer.
      inner_state: its state.
      changed: a tree like the parameters': bool of a leaf's shape, or a scalar False.
      is_due: whether anything may have changed.

    Returns:
      The state. Only arrays of a parameter's own shape are changed: what is factored,
      or kept for several weights together, stays.
    """

    def reset(state: Any) -> Any:
        # In one piece: an optimizer may hold several arrays where a parameter is.
        return optax.tree.map_params(
            inner, _reset, state, changed, is_leaf=lambda _: True
        )

    return jax.lax.cond(is_due, reset, lambda state: state, inner_state)


def _reset(held: Any, changed: Any) -> Any:
    """The state of one subtree of the parameters, level by level."""
    if isinstance(changed, jax.Array):
        is_like_the_parameter = (
            isinstance(held, jax.Array) and changed.ndim and held.shape == changed.shape
        )
        if not is_like_the_parameter:
            return held
        return where_laid_out(changed, jnp.zeros_like(held), held)
    if is_dense(held):  # what optax.partition gives to another optimizer
        return held
    treedef: Any = jax.tree.structure(held, is_leaf=lambda node: node is not held)
    below = zip(
        treedef.flatten_up_to(held), treedef.flatten_up_to(changed), strict=True
    )
    return treedef.unflatten([_reset(*pair) for pair in below])
