"""Reset: the optimizer's state of weights that were dropped or grown begins anew."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax._layouts import where_laid_out
from gradprune_jax._state import is_dense


def reset_where(
    inner: optax.GradientTransformation, inner_state: Any, changed: Any
) -> Any:
    """Sets to zero what an optimizer holds for some weights.

    Args:
      inner: the optimizer.
      inner_state: its state.
      changed: a tree like the parameters': bool of a leaf's shape, or a scalar False.

    Returns:
      The state. Only arrays of a parameter's own shape are changed: what is factored,
      or kept for several weights together, stays.
    """

    def reset(leaf: Any, own: Any) -> Any:
        is_like_the_parameter = (
            isinstance(leaf, jax.Array) and own.ndim and leaf.shape == own.shape
        )
        if not is_like_the_parameter:
            return leaf
        return where_laid_out(own, jnp.zeros_like(leaf), leaf)

    # `is_dense`: optax.partition has a MaskedNode in the place of other parameters.
    return optax.tree.map_params(inner, reset, inner_state, changed, is_leaf=is_dense)
