"""Line searches: what optax keeps of a loss, made true of masked parameters.

A line search keeps the loss and the gradient at the parameters that it found, and
`optax.value_and_grad_from_state` gives them back in the next step. Pruning changes
these parameters afterwards.
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
    r"""What a line search is given, of the loss of the masked parameters.

    .. math:: f_m(p) = f(m \odot p), \qquad \nabla f_m = m \odot \nabla f

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


def forget_losses(inner_state: Any, rules: Sequence[Rule], step: jax.Array) -> Any:
    """The state of a line search without a loss that new masks have made untrue.

    ``optax.value_and_grad_from_state`` evaluates the loss again where it is infinite.
    """
    schedules: list[Any] = [rule.schedule for rule in rules if rule.schedule]

    def has_loss(node: Any) -> bool:
        return {"value", "grad"} <= set(getattr(node, "_fields", ()))

    def forget(node: Any) -> Any:
        if not has_loss(node):
            return node
        changed = [schedule.is_update_step(step) for schedule in schedules]
        unknown = jnp.full_like(node.value, jnp.inf)
        is_stale = functools.reduce(jnp.logical_or, changed, jnp.bool_(False))
        return node._replace(value=jnp.where(is_stale, unknown, node.value))

    return jax.tree.map(forget, inner_state, is_leaf=has_loss)
