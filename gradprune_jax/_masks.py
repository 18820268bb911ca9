"""Masks: reading them out of an optimizer's state, and putting them into one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._pairing import merge_masks, nonzero, pair_with_masks
from gradprune_jax._rules import Rule, Where, assign, selects
from gradprune_jax._state import GradualPruneState, is_dense
from gradprune_jax._transform import forget_losses


def get_masks(opt_state: Any) -> Any:
    """Finds the masks in an optimizer's state, however deep they are nested.

    Args:
      opt_state: the state of any optimizer with `gradual_prune` in it, however
        wrapped (`chain`, `MultiSteps`, `partition`, `inject_hyperparams`), or an
        `nnx.Optimizer`.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is kept, and
      `optax.MaskedNode()` where a leaf is dense. Masks of several links are merged:
      a weight is kept where all of them keep it. From nnx the masks are plain arrays,
      not variables. To map over parameters and masks together, turn both into
      dictionaries by `nnx.to_pure_dict`.

    Raises:
      ValueError: if there is no pruning state, or several of different trees.

    Examples:
      >>> import gradprune_jax as gp
      >>> schedule = gp.one_shot_schedule(0.5, step=0)
      >>> tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(schedule))
      >>> opt_state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      >>> get_masks(opt_state)["bias"]
      MaskedNode()
    """
    masks, *others = [
        _tree.without_variables(state.masks) for state in prune_states(opt_state)
    ]
    for other in others:
        masks = merge_masks(masks, other)
    return masks


def set_masks(opt_state: Any, masks: Any) -> Any:
    """Puts masks into an optimizer's state: to start from a sparse model, or rewind.

    The count of steps stays. Masks only shrink from here on, as always; apply them to
    the parameters too (`apply_masks`).

    Args:
      opt_state: a state as for `get_masks`.
      masks: a tree like the parameters': bool arrays, or `optax.MaskedNode()` for
        a leaf of which everything is kept. Masks of leaves that are dense in the state
        are ignored.

    Returns:
      The state with these masks, on the devices of the old ones. If the old ones are
      NumPy arrays, nothing is moved. Losses that line searches stored are set to
      infinity, so that optax evaluates them again.

    Raises:
      ValueError: if the masks do not fit or are not bool.

    Examples:
      >>> import gradprune_jax as gp
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
      >>> opt_state = set_masks(tx.init(params), masks_from_params(params))
      >>> print(get_masks(opt_state)["kernel"])
      [[ True False]
       [False  True]]
    """
    prune_states(opt_state)  # refuses a state without pruning

    def exchange(node: Any) -> Any:
        if not isinstance(node, GradualPruneState):
            return node
        treedef: Any = jax.tree.structure(node.masks, is_leaf=is_dense)
        own = [
            old if is_dense(old) else _in_place_of(old, new)
            for _, old, new in pair_with_masks(node.masks, masks)
        ]
        return node._replace(masks=treedef.unflatten(own))

    exchanged = jax.tree.map(exchange, opt_state, is_leaf=_is_state)
    return forget_losses(exchanged, lambda: True)


def masks_from_params(params: Any, where: Where | None = None) -> Any:
    """Makes masks that keep the non-zero weights of a sparse model.

    Args:
      params: parameters, plain or boxed; or a whole Equinox or nnx model, of which
        nnx's `nnx.Param` are taken.
      where: which leaves get a mask, as in `Rule`; None is every floating leaf.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is not zero, and
      `optax.MaskedNode()` for other leaves.

    Raises:
      ValueError: if `where` matches no leaf, or one that is not floating.

    Examples:
      >>> masks = masks_from_params({"kernel": jnp.array([0.0, 0.5]), "step": 3})
      >>> print(masks["kernel"], masks["step"])
      [False  True] MaskedNode()
    """
    params = _tree.parameters(params)
    treedef: Any = jax.tree.structure(params)
    leaves = _tree.named_leaves(params)
    selection = Rule(schedule=None, where=_is_floating if where is None else where)
    if where is not None:
        assign([selection], leaves)  # refuses one that matches nothing
    masks = [
        _mask_of(leaf) if selects(selection, leaf) else optax.MaskedNode()
        for leaf in leaves
    ]
    return _tree.without_variables(treedef.unflatten(masks))


def _is_state(node: Any) -> bool:
    return isinstance(node, GradualPruneState)


def has_masks(tree: Any) -> bool:
    """Whether a tree is an optimizer's state with pruning in it."""
    return any(map(_is_state, jax.tree.leaves(tree, is_leaf=_is_state)))


def prune_states(opt_state: Any) -> list[GradualPruneState]:
    """Every pruning state inside an optimizer's state: one at least."""
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_state)
    states = [node for node in nodes if _is_state(node)]
    if not states:
        raise ValueError(
            "there is no GradualPruneState in the optimizer's state. Is gradual_prune "
            "in the chain, and was a restored state given its structure by tx.init?"
        )
    return states


def _in_place_of(old: Any, new: Any) -> Any:
    """The new mask, laid out over devices as the old one."""
    if is_dense(new):
        return jnp.ones_like(old)
    if is_traced(old) or is_traced(new) or not isinstance(old, jax.Array):
        return new  # a restored state may hold NumPy arrays, which are on no device
    if not old.committed and not getattr(new, "committed", False):
        # Bound to no device, like the parameters: else the step would be compiled anew.
        return jnp.asarray(new)
    return jax.device_put(new, old.sharding)


def _mask_of(leaf: _tree.Leaf) -> jax.Array:
    """Where a leaf is not zero."""
    if not jnp.issubdtype(leaf.value.dtype, jnp.floating):
        raise ValueError(
            f"{leaf.name!r} has dtype {leaf.value.dtype}, which is not a floating "
            "dtype and cannot be pruned; narrow where so that it does not match it."
        )
    return nonzero(leaf.value)


def _is_floating(path: _tree.Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be pruned at all."""
    del path
    return jnp.issubdtype(leaf.dtype, jnp.floating)
