"""Absent leaves: what has no update is left alone, as optax leaves it.

Equinox differentiates only the arrays of a model: the update of its functions, and of
what is frozen, is None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree


def without_absent(updates: Any, params: Any, masks: Any) -> tuple[Any, Any]:
    """Parameters and masks without what has no update.

    Args:
      updates: the updates, None for leaves that have none.
      params: the parameters, NumPy's arrays or JAX's.
      masks: those of the state.

    Returns:
      Parameters, JAX's arrays, and masks: None in the place of what has no update.

    Raises:
      ValueError: if parameters or updates are missing, if the trees do not fit, or a
        pruned leaf has no update.
    """
    check_given(params)
    if updates is None:
        raise ValueError(
            "the updates are None: call tx.update(updates, state, params)."
        )
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    if not any(map(_is_none, leaves)):
        return as_arrays(params), masks
    try:
        owners, own_masks = map(treedef.flatten_up_to, (params, masks))
    except ValueError as error:
        raise ValueError(
            f"the updates' tree does not fit the parameters' or the masks': {error}"
        ) from None
    names = _tree.named_leaves(treedef.unflatten(range(len(leaves))))
    for name, update, mask in zip(names, leaves, own_masks, strict=True):
        if update is None and jax.tree.leaves(mask):
            raise ValueError(
                f"{name.name!r} is pruned but its update is None. To leave it as it "
                "is, leave it dense: Rule(None, where=...)."
            )
    present = [update is not None for update in leaves]

    def keep(items: Sequence[Any]) -> Any:
        pairs = zip(items, present, strict=True)
        return treedef.unflatten([item if kept else None for item, kept in pairs])

    return as_arrays(keep(owners)), keep(own_masks)


def with_absent(updates: Any, masks: Any, old_masks: Any) -> Any:
    """New masks, and the old ones of what has no update."""
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    if not any(map(_is_none, leaves)):
        return masks
    new, old = map(treedef.flatten_up_to, (masks, old_masks))
    return treedef.unflatten(
        [
            before if update is None else after
            for update, before, after in zip(leaves, old, new, strict=True)
        ]
    )


def as_arrays(params: Any) -> Any:
    """The parameters with NumPy's arrays as JAX's, in a dtype that JAX computes in."""

    def as_array(leaf: Any) -> Any:
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(as_array, params)


def check_given(params: Any) -> None:
    """Refuses to prune without the parameters."""
    if params is None:
        raise ValueError(
            "pruning needs the parameters: call tx.update(updates, state, params)."
        )


def _is_none(node: Any) -> bool:
    return node is None
