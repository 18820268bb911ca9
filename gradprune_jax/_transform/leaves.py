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
from gradprune_jax._layouts import where_laid_out
from gradprune_jax._mask_update import PrunedLeaf
from gradprune_jax._rules import Rule, assign
from gradprune_jax._state import check_fits, is_dense
from gradprune_jax._top_k import Shard, wider_dtype
from gradprune_jax._transform.partition_specs import shards

# What is wrong where trees do not fit together.
_UPDATES = "the updates' tree does not fit the parameters':"
_MASKS = (
    "the masks' tree does not fit the parameters'; was the state made by init on the "
    "same parameters?"
)


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
      gradient: its gradient, where the score of its rule reads one; else None.
      score_state: what this score has accumulated; None if it accumulates nothing.
    """

    name: str
    weight: Any
    update: Any
    mask: Any
    shard: Shard
    rule: int | None
    gradient: Any = None
    score_state: Any = None

    @property
    def is_pruned(self) -> bool:
        """Whether the leaf has a mask, and an update to be masked."""
        return self.update is not None and not is_dense(self.mask)

    def pruned(self) -> PrunedLeaf:
        """What a mask update needs of the leaf."""
        return PrunedLeaf(
            self.weight,
            self.mask,
            self.shard,
            self.name,
            self.gradient,
            self.score_state,
        )

    def new_update(self) -> Any:
        """Returns `update` where the weight is live, and `-weight` where it is pruned.

        Selected, not multiplied by the mask: a product would keep NaN, give -0.0, and
        round the updates of live weights. Computed in the wider of the two dtypes, so
        that `weight + (-weight)` is exactly zero.
        """
        if not self.is_pruned:
            return self.update
        update = self.fitting("update", self.update)
        try:
            dtype = wider_dtype(self.weight.dtype, update.dtype)
        except ValueError:
            raise ValueError(
                f"{self.name!r} has dtype {self.weight.dtype} and its update "
                f"{update.dtype}; 8-bit floats are not promoted, so cast the update to "
                "the parameter's dtype before gradual_prune."
            ) from None
        return where_laid_out(
            self.mask, update.astype(dtype), -self.weight.astype(dtype)
        )

    def zero_pruned(self, gradient: Any) -> Any:
        """A gradient of the leaf where the weight lives, zero where it is pruned."""
        if not self.is_pruned:
            return gradient
        gradient = self.fitting("gradient", gradient)
        return where_laid_out(self.mask, gradient, jnp.zeros_like(gradient))

    def check(self) -> None:
        """Refuses a mask without an update, or one that does not fit its weight."""
        if self.update is None:
            if jax.tree.leaves(self.mask):
                raise ValueError(
                    f"{self.name!r} is pruned but its update is None. To leave it as "
                    "it is, leave it dense: Rule(None, where=...)."
                )
        elif not is_dense(self.mask):
            check_fits(self.name, self.weight, self.mask)

    def fitting(self, what: str, array: Any) -> jax.Array:
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
        return self.treedef.unflatten([leaf.new_update() for leaf in self.leaves])

    def masks(self) -> Any:
        """The masks, as a state holds them."""
        return self.treedef.unflatten([leaf.mask for leaf in self.leaves])

    def with_updates(self, updates: Any) -> UpdateTree:
        """The same leaves with what an optimizer has made of their gradients."""
        own = flatten(self.treedef, updates, _UPDATES)
        leaves = [
            leaf._replace(update=update)
            for leaf, update in zip(self.leaves, own, strict=True)
        ]
        for leaf in leaves:
            leaf.check()
        return self._replace(leaves=leaves)

    def zero_pruned(self, tree: Any) -> Any:
        """Gradients, or parameters, with zeros where a weight is pruned."""
        own = flatten(self.treedef, tree, _UPDATES)
        pairs = zip(self.leaves, own, strict=True)
        return self.treedef.unflatten(
            [leaf.zero_pruned(array) for leaf, array in pairs]
        )


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
    treedef: Any = (
        jax.tree.structure(updates, is_leaf=_is_none)
        if is_partial
        else jax.tree.structure(params)
    )
    own_updates = flatten(treedef, updates, _UPDATES)
    own_params = flatten(treedef, params, _UPDATES)
    own_masks = flatten(treedef, masks, _MASKS)
    pairs = list(zip(own_params, own_updates, strict=True))
    if not jax.tree_util.all_leaves([p for p, u in pairs if u is not None]):
        raise ValueError(f"{_UPDATES} an update has no parameter, or several.")
    present = as_arrays(treedef.unflatten([None if u is None else p for p, u in pairs]))
    named = _tree.named_leaves(present, _is_none)
    placement = shards(present, partition_specs, is_leaf=_is_none)
    shapes = [shard.shape for shard in placement]
    assigned = assign(rules, named, shapes, all_match=False)  # some may be absent
    leaves = [
        LeafUpdate(leaf.name, leaf.value, update, mask, shard, rule)
        for leaf, update, mask, shard, rule in zip(
            named, own_updates, own_masks, placement, assigned, strict=True
        )
    ]
    for leaf in leaves:
        leaf.check()
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


def flatten(treedef: Any, tree: Any, problem: str) -> list[Any]:
    """The parts of a tree that stand at the leaves of the reference tree."""
    try:
        return treedef.flatten_up_to(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{problem} {error}") from None


def _is_none(node: Any) -> bool:
    return node is None
