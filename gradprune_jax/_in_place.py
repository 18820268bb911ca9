"""A conditional update that XLA makes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Carried = TypeVar("Carried")


def update_if(
    condition: jax.Array,
    update: Callable[[Carried, Any], Carried],
    carried: Carried,
    inputs: Any,
) -> Carried:
    """Updates arrays if a condition holds, else hands them on.

    XLA copies what a branch of `lax.cond` hands on, on a GPU twice, and keeps what a
    loop carries where it is. So this is a loop of one round or none.

    Args:
      condition: bool scalar.
      update: from the carried arrays and the inputs, arrays of the same types.
      carried: a tree of arrays.
      inputs: what else the update reads, a tree of arrays.

    Returns:
      The tree of arrays, updated or as it was.
    """

    def once(state: tuple[jax.Array, Carried]) -> tuple[jax.Array, Carried]:
        is_due, carried = state

        # What the inputs alone decide XLA may compute before the loop, at every step.
        # This ties each of them to a value that the loop changes.
        def tied(array: jax.Array) -> jax.Array:
            return jax.lax.optimization_barrier((is_due, array))[1]

        return jnp.zeros_like(is_due), update(carried, jax.tree.map(tied, inputs))

    _, carried = jax.lax.while_loop(lambda state: state[0], once, (condition, carried))
    return carried
