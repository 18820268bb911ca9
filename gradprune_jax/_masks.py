"""Masks: reading them out of an optimizer's state, and putting them into one."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradprune_jax import _paths
from gradprune_jax._rules import Rule, Where
from gradprune_jax._state import GradualPruneState, check_fits, is_dense


def get_masks(opt_state: Any) -> Any:
    """The masks in an optimizer's state, wherever they are nested.

    Args:
      opt_state: the state of any optimizer with :func:`gradual_prune` in it, however
        wrapped (`chain`, `MultiSteps`, `partition`, `inject_hyperparams`), or an
        ``nnx.Optimizer``.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is kept, and
      ``optax.MaskedNode()`` where a leaf is dense. Masks of several links are merged:
      a weight is kept where all of them keep it. From nnx, plain arrays, no variables.

    Raises:
      ValueError: if there is no pruning state, or several of different trees.

    Example:
      >>> import gradprune_jax as gp
      >>> schedule = gp.one_shot_schedule(0.5, step=0)
      >>> tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(schedule))
      >>> opt_state = tx.init({"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)})
      >>> get_masks(opt_state)["bias"]
      MaskedNode()
    """
    masks, *others = [
        _without_variables(state.masks) for state in prune_states(opt_state)
    ]
    for other in others:
        try:
            masks = jax.tree.map(_intersection, masks, other, is_leaf=is_dense)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                "the state has masks of several parameter trees; call get_masks on the "
                f"part that belongs to one. {error}"
            ) from None
    return masks


def set_masks(opt_state: Any, masks: Any) -> Any:
    """The same optimizer state with other masks: to start from, or go back to, a model.

    The count of steps stays. Masks only shrink from here on, as always; apply them to
    the parameters too (:func:`apply_masks`).

    Args:
      opt_state: a state as for :func:`get_masks`.
      masks: a tree like the parameters': bool arrays, or ``optax.MaskedNode()`` for
        a leaf of which everything is kept.

    Returns:
      The state with these masks, placed on devices as the old ones were.

    Raises:
      ValueError: if the masks do not fit, are not bool, or prune a leaf that no rule of
        the state prunes.

    Example:
      >>> import gradprune_jax as gp
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
      >>> params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]])}
      >>> opt_state = set_masks(tx.init(params), masks_from_params(params))
      >>> print(get_masks(opt_state)["kernel"])
      [[ True False]
       [False  True]]
    """
    states = prune_states(opt_state)
    _check_all_used(masks, states)

    def exchange(node: Any) -> Any:
        if not isinstance(node, GradualPruneState):
            return node
        treedef: Any = jax.tree.structure(node.masks, is_leaf=is_dense)
        exchanged = [
            old if is_dense(old) else _in_place_of(old, new)
            for _, old, new in pair_with_masks(node.masks, masks)
        ]
        return node._replace(masks=treedef.unflatten(exchanged))

    return jax.tree.map(exchange, opt_state, is_leaf=_is_state)


def masks_from_params(params: Any, where: Where | None = None) -> Any:
    """Masks that keep the weights that are not zero: those of a sparse model.

    Args:
      params: parameters, plain or boxed.
      where: which leaves get a mask, as in :class:`Rule`; None is :func:`is_weight`.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is not zero, and
      ``optax.MaskedNode()`` for the leaves that `where` does not select.

    Example:
      >>> masks_from_params({"kernel": jnp.array([[0.0, 0.5]]), "bias": jnp.zeros(2)})
      {'bias': MaskedNode(), 'kernel': Array([[False,  True]], dtype=bool)}
    """
    treedef: Any = jax.tree.structure(params)
    selection = Rule(schedule=None, where=where)
    masks = [
        leaf.value != 0 if selection.selects(leaf) else optax.MaskedNode()
        for leaf in _paths.named_leaves(params)
    ]
    return _without_variables(treedef.unflatten(masks))


def apply_masks(tree: Any, masks: Any) -> Any:
    r"""Zeroes what the masks prune: :math:`w \leftarrow w` where m, else +0.0.

    For copies that the optimizer does not see: an exponential moving average, the
    evaluation point of ``schedule_free``, restored or rewound parameters.

    Args:
      tree: parameters, or a tree like them, plain or boxed.
      masks: masks as :func:`get_masks` returns them.

    Returns:
      The tree, zero where a mask is False. A select: NaN is zeroed too.

    Raises:
      ValueError: if the masks do not fit the tree.

    Example:
      >>> print(apply_masks(jnp.array([1.0, -2.0]), jnp.array([True, False])))
      [1. 0.]
    """
    treedef: Any = jax.tree.structure(tree, is_leaf=is_dense)
    return treedef.unflatten(
        [
            leaf if is_dense(mask) else jnp.where(mask, leaf, jnp.zeros_like(leaf))
            for _, leaf, mask in pair_with_masks(tree, masks)
        ]
    )


def pair_with_masks(tree: Any, masks: Any) -> list[tuple[str, Any, Any]]:
    """Each leaf's name, the leaf and its mask, whichever of the trees is boxed.

    Args:
      tree: parameters, or a tree like them.
      masks: their masks.

    Returns:
      ``(name, leaf, mask)`` for each leaf; the mask of a dense leaf is a `MaskedNode`.

    Raises:
      ValueError: if the trees differ, or a mask does not fit its leaf.
    """
    leaves = _paths.named_leaves(tree, is_dense)
    mask_leaves = _paths.named_leaves(masks, is_dense)
    for leaf, mask in itertools.zip_longest(leaves, mask_leaves):
        if leaf is None or mask is None or leaf.path != mask.path:
            raise ValueError(
                "the masks do not fit the tree: the first difference is "
                f"{getattr(leaf, 'name', 'nothing')!r} in the tree and "
                f"{getattr(mask, 'name', 'nothing')!r} in the masks. A dense leaf "
                "needs optax.MaskedNode() in its place."
            )
        if not is_dense(mask.value) and not is_dense(leaf.value):
            check_fits(mask.name, leaf.value, mask.value)
    return [
        (leaf.name, leaf.value, mask.value)
        for leaf, mask in zip(leaves, mask_leaves, strict=True)
    ]


def _is_state(node: Any) -> bool:
    return isinstance(node, GradualPruneState)


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


def _without_variables(tree: Any) -> Any:
    """The tree with nnx variables replaced by the arrays that they hold."""

    def value(node: Any) -> Any:
        if not isinstance(node, nnx.Variable):
            return node
        # A variable around MaskedNode() has no leaf of its own.
        return jax.tree.leaves(node, is_leaf=is_dense)[0]

    return jax.tree.map(value, tree, is_leaf=lambda n: isinstance(n, nnx.Variable))


def _intersection(mask: Any, other: Any) -> Any:
    """What two masks of one leaf keep, either of which may be dense."""
    if is_dense(mask):
        return other
    return mask if is_dense(other) else mask & other


def _check_all_used(masks: Any, states: list[GradualPruneState]) -> None:
    """Refuses masks that prune a leaf of which no state has a mask."""
    pairs = [pair_with_masks(state.masks, masks) for state in states]
    for leaf in zip(*pairs, strict=True):
        name, _, mask = leaf[0]
        unused = all(is_dense(own) for _, own, _ in leaf) and not is_dense(mask)
        # Values are known outside jit alone; a mask that prunes nothing is harmless.
        if unused and not isinstance(mask, jax.core.Tracer) and not bool(mask.all()):
            raise ValueError(
                f"the masks prune {name!r}, which no rule of the state prunes; replace "
                "its mask by optax.MaskedNode()."
            )


def _in_place_of(old: jax.Array, new: Any) -> jax.Array:
    """The new mask, laid out over devices as the old one."""
    if is_dense(new):
        return jnp.ones_like(old)
    if isinstance(old, jax.core.Tracer) or isinstance(new, jax.core.Tracer):
        return new
    return jax.device_put(new, old.sharding)
