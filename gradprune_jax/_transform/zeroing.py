"""Zeroing: what masks do to updates and to gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._layouts import select
from gradprune_jax._state import is_dense
from gradprune_jax._top_k.keys import wider_dtype


def map_pruned(
    fn: Callable[..., jax.Array], treedef: Any, masks: Any, params: Any, updates: Any
) -> Any:
    """The updates with `fn(name, mask, weight, update)` applied to pruned leaves."""
    try:
        update_leaves = treedef.flatten_up_to(updates)
    except ValueError as error:
        raise ValueError(
            f"the updates' tree does not fit the parameters': {error}"
        ) from None
    leaves = _tree.named_leaves(params)
    return treedef.unflatten(
        [
            update if is_dense(mask) else fn(leaf.name, mask, leaf.value, update)
            for leaf, mask, update in zip(leaves, masks, update_leaves, strict=True)
        ]
    )


def zero_pruned(
    name: str, mask: jax.Array, weight: jax.Array, update: jax.Array
) -> jax.Array:
    """The update where the weight lives, minus the weight where it is pruned.

    A select, not a product: a product keeps NaN, makes -0.0, and rounds live weights.
    In the wider of the two dtypes, or the weight would not cancel to the last bit.
    """
    update = _fitting("update", name, weight, update)
    try:
        dtype = wider_dtype(weight.dtype, update.dtype)
    except ValueError:
        raise ValueError(
            f"{name!r} has dtype {weight.dtype} and its update {update.dtype}; "
            "8-bit floats are not promoted, so cast the update to the parameter's "
            "dtype before gradual_prune."
        ) from None
    return select(mask, update.astype(dtype), -weight.astype(dtype))


def mask_gradient(
    name: str, mask: jax.Array, weight: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient where the weight lives, zero where it is pruned."""
    gradient = _fitting("gradient", name, weight, gradient)
    return select(mask, gradient, jnp.zeros_like(gradient))


def _fitting(what: str, name: str, weight: jax.Array, array: Any) -> jax.Array:
    """The update or gradient of a pruned leaf, refused if it has another shape."""
    shape = np.shape(array)
    if shape != weight.shape:
        raise ValueError(
            f"the {what} of {name!r} has shape {shape}, but the parameter is pruned "
            f"and has shape {weight.shape}."
        )
    return jnp.asarray(array)
