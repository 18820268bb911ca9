"""The optimizer's state after a cut: moments and masks as small as the parameters."""

from __future__ import annotations

from typing import Any

import optax

from gradprune_jax._program.shrunk import Shrunk


def shrink_opt_state(
    tx: optax.GradientTransformation, opt_state: Any, shrunk: Shrunk
) -> Any:
    """Cuts an optimizer's state like the parameters, so that training goes on.

    Args:
      tx: the optimizer that made the state.
      opt_state: its state, also that of an `nnx.Optimizer`.
      shrunk: from `shrink`, with the parameters that the optimizer was made for.

    Returns:
      The state, in which every copy of the parameters' tree (moments, averages, masks)
      has lost what they have lost. What is no such copy is unchanged.

    Raises:
      ValueError: if a copy has a leaf of another shape than its parameter, such as the
        factored moments of `optax.adafactor`, or if optax can't tell its copies, as of
        `optax.lbfgs`.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
      >>> params = {"w1": jnp.ones((2, 3)).at[:, 1].set(0), "w2": jnp.ones((3, 1))}
      >>> adam = optax.adam(1e-3)
      >>> shrunk = gp.shrink(fn, params, jnp.ones((1, 2)))
      >>> state = shrink_opt_state(adam, adam.init(params), shrunk)
      >>> state[0].mu["w1"].shape
      (2, 2)
    """
    try:
        return optax.tree.map_params(tx, shrunk.cut, opt_state, is_leaf=_anything)
    except (IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            "optax can't tell which parts of this optimizer's state are like the "
            f"parameters ({type(error).__name__}: {error}); cut these by "
            "shrunk.cut(part), or begin anew: tx.init(shrunk.params)."
        ) from None


def _anything(node: Any) -> bool:
    del node
    return True
