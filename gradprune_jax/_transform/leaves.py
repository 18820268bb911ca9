"""Leaves: each leaf of an update with everything that belongs to it.

One walk over the tree brings together what optax hands in apart: the update of a leaf,
its weight, its mask, its rule and its place on the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax import _tree
from gradprune_jax._layouts import select
from gradprune_jax._rules import Rule, assign
from gradprune_jax._state import check_fits, is_dense
from gradprune_jax._top_k import Shard, wider_dtype
from gradprune_jax._transform.partition_specs import shards


class LeafUpdate(NamedTuple):
    """One leaf of an update.

    Attributes:
      name: its path as one string.
      weight: the parameter; None where there is no update.
      update: its update, or its gradient; None where it has none.
      mask: bool, or `MaskedNode` where the leaf is dense; where there is no update,
        whatever the state has there.
      shard: where the leaf lies in its whole array.
      rule: the position of the rule that prunes it, None if none does.
    """

    name: str
    weight: Any
    update: Any
    mask: Any
    shard: Shard | None = None
    rule: int | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether the leaf has a mask, and an update to be masked."""
        return self.update is not None and not is_dense(self.mask)

    def zeroed(self) -> Any:
        """Returns `update` where the weight is live, and `-weight` where it is pruned.

        Selected, not multiplied by the mask: a product would keep NaN, give -0.0, and
        round the updates of live weights. Computed in the wider of the two dtypes, so
        that `weight + (-weight)` is exactly zero.
        """
        if not self.is_pruned:
            return self.update
        update = self._fitting("update", self.update)
        try:
            dtype = wider_dtype(self.weight.dtype, update.dtype)
        except ValueError:
            raise ValueError(
                f"{self.name!r} has dtype {self.weight.dtype} and its update "
                f"{update.dtype}; 8-bit floats are not promoted, so cast the update to "
                "the parameter's dtype before gradual_prune."
            ) from None
        return select(self.mask, update.astype(dtype), -self.weight.astype(dtype))

    def masked(self, gradient: Any) -> Any:
        """A gradient of the leaf where the weight lives, zero where it is pruned."""
        if not self.is_pruned:
            return gradient
        gradient = self._fitting("gradient", gradient)
        return select(self.mask, gradient, jnp.zeros_like(gradient))

    def _fitting(self, what: str, array: Any) -> jax.Array:
        """The update or gradient of a pruned leaf, refused if it has another shape."""
        shape = np.shape(array)
        if shape != self.weight.shape:
            raise ValueError(
                f"the {what} of {self.name!r} has shape {shape}, but the parameter is "
                f"pruned and has shape {self.weight.shape}."
            )
        return jnp.asarray(array)


class UpdateTree(NamedTuple):
    """The leaves of an update, and the tree that they make.

    Attributes:
      leaves: the leaves, in the order of the tree.
      treedef: the tree, in which None stands for a leaf without an update.
    """

    leaves: list[LeafUpdate]
    treedef: Any

    def updates(self) -> Any:
        """The updates, zeroed where a weight is pruned."""
        return self.treedef.unflatten([leaf.zeroed() for leaf in self.leaves])

    def masks(self) -> Any:
        """The masks, as a state holds them."""
        return self.treedef.unflatten([leaf.mask for leaf in self.leaves])

    def mask(self, tree: Any) -> Any:
        """Gradients, or parameters, with zeros where a weight is pruned."""
        own = _flatten_updates(self.treedef, tree)
        pairs = zip(self.leaves, own, strict=True)
        return self.treedef.unflatten([leaf.masked(array) for leaf, array in pairs])


def pair_leaves(
    updates: Any,
    masks: Any,
    params: Any,
    rules: Sequence[Rule] = (),
    partition_specs: Any = None,
) -> UpdateTree:
    """Brings together the updates, the parameters and the masks of a state.

    Equinox differentiates only the arrays of a model: the update of its functions, and
    of what is frozen, is None. Such leaves are left alone, as optax leaves them.

    Args:
      updates: the updates, None for leaves that have none.
      masks: the masks of a state.
      params: the parameters, NumPy's arrays or JAX's.
      rules: the rules that prune them.
      partition_specs: inside `shard_map`, their specs.

    Returns:
      The leaves with their tree.

    Raises:
      ValueError: if parameters or updates are missing, if the trees do not fit, or a
        pruned leaf has no update.
    """
    check_given(params)
    if updates is None:
        raise ValueError(
            "the updates are None: call tx.update(updates, state, params)."
        )
    is_partial = any(map(_is_none, jax.tree.leaves(updates, is_leaf=_is_none)))
    treedef: Any = jax.tree.structure(
        updates if is_partial else params, is_leaf=_is_none
    )
    own_updates = _flatten_updates(treedef, updates)
    own_params = _flatten_updates(treedef, params)
    own_masks = _flatten_masks(treedef, masks)
    present = as_arrays(
        treedef.unflatten(
            [
                None if update is None else weight
                for update, weight in zip(own_updates, own_params, strict=True)
            ]
        )
    )
    named = _tree.named_leaves(present)
    placement = shards(present, partition_specs)
    shapes = [shard.shape for shard in placement]
    assigned = assign(rules, named, shapes, all_match=False)  # some may be absent
    found = iter(zip(named, placement, assigned, strict=True))
    names = _tree.named_leaves(treedef.unflatten(range(treedef.num_leaves)))
    leaves = []
    for place, update, mask in zip(names, own_updates, own_masks, strict=True):
        if update is None:
            _check_not_pruned(place.name, mask)
            leaves.append(LeafUpdate(place.name, None, None, mask))
            continue
        leaf, shard, rule = next(found)
        if not is_dense(mask):
            check_fits(leaf.name, leaf.value, mask)
        leaves.append(LeafUpdate(leaf.name, leaf.value, update, mask, shard, rule))
    return UpdateTree(leaves, treedef)


def as_arrays(params: Any) -> Any:
    """The parameters with NumPy's arrays as JAX's, in a dtype that JAX computes in."""

    def as_array(leaf: Any) -> Any:
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf

    return jax.tree.map(as_array, params)


def check_given(params: optax.Params | None) -> None:
    """Refuses to prune without the parameters."""
    if params is None:
        raise ValueError(
            "pruning needs the parameters: call tx.update(updates, state, params)."
        )


def _flatten_updates(treedef: Any, tree: Any) -> list[Any]:
    """The parts of a tree that stand at the leaves of the reference tree."""
    try:
        return treedef.flatten_up_to(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the updates' tree does not fit the parameters': {error}"
        ) from None


def _flatten_masks(treedef: Any, masks: Any) -> list[Any]:
    """The masks of a state that stand at the leaves of the reference tree."""
    try:
        return treedef.flatten_up_to(masks)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "the masks' tree does not fit the parameters'; was the state made by "
            f"init on the same parameters? {error}"
        ) from None


def _check_not_pruned(name: str, mask: Any) -> None:
    """Refuses a leaf that has a mask and no update."""
    if jax.tree.leaves(mask):
        raise ValueError(
            f"{name!r} is pruned but its update is None. To leave it as it is, leave "
            "it dense: Rule(None, where=...)."
        )


def _is_none(node: Any) -> bool:
    return node is None
