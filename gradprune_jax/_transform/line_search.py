"""Line searches: keep the loss that optax stores equal to that of pruned parameters.

A line search stores the loss and the gradient at the parameters that it found, and
`optax.value_and_grad_from_state` reuses them in the next step. Pruning changes these
parameters afterwards, so the stored loss would be wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax._rules import Rule


def of_masked_loss(
    extra_args: dict[str, Any], mask_tree: Callable[[Any], Any]
) -> dict[str, Any]:
    r"""The arguments of a line search, for the loss of the masked parameters.

    $$
    f_m(p) = f(m \odot p), \qquad \nabla f_m = m \odot \nabla f
    $$

    The step ends at masked parameters, so what it finds is true of them.
    """
    masked = dict(extra_args)
    if masked.get("grad") is not None:
        masked["grad"] = mask_tree(masked["grad"])
    value_fn = masked.get("value_fn")
    if callable(value_fn):

        @functools.wraps(value_fn)  # optax asks for its arguments by name
        def masked_value_fn(params: Any, *args: Any, **kwargs: Any) -> Any:
            return value_fn(mask_tree(params), *args, **kwargs)

        masked["value_fn"] = masked_value_fn
    return masked


def forget_losses(state: Any, are_stale: Callable[[], Any]) -> Any:
    """Sets stored losses to infinity where new masks have made them wrong.

    `optax.value_and_grad_from_state` evaluates a loss again where it is infinite.

    Args:
      state: the state, with or without line searches in it.
      are_stale: whether the losses are untrue; called only if there are any.

    Returns:
      The state, each loss infinite if it is untrue.
    """

    def has_loss(node: Any) -> bool:
        return {"value", "grad"} <= set(getattr(node, "_fields", ()))

    def forget(node: Any) -> Any:
        if not has_loss(node):
            return node
        unknown = jnp.full_like(node.value, jnp.inf)
        return node._replace(value=jnp.where(are_stale(), unknown, node.value))

    return jax.tree.map(forget, state, is_leaf=has_loss)


def change_masks(rules: Sequence[Rule], step: jax.Array) -> jax.Array:
    """Whether any of the rules updates masks at a step."""
    schedules: list[Any] = [rule.schedule for rule in rules if rule.schedule]
    updates = [schedule.is_update_step(step) for schedule in schedules]
    return functools.reduce(jnp.logical_or, updates, jnp.bool_(False))
