"""Masks: reading them out of an optimizer's state, and putting them into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradprune_jax import _paths
from gradprune_jax._checks import is_traced
from gradprune_jax._magnitudes import is_nonzero
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
      a weight is kept where all of them keep it. From nnx, plain arrays, no variables;
      ``nnx.to_pure_dict`` makes a dictionary of them, to map over with that of the
      parameters.

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
        masks = _merge(masks, other)
    return masks


def set_masks(opt_state: Any, masks: Any) -> Any:
    """The same optimizer state with other masks: to start from, or go back to, a model.

    The count of steps stays. Masks only shrink from here on, as always; apply them to
    the parameters too (:func:`apply_masks`).

    Args:
      opt_state: a state as for :func:`get_masks`.
      masks: a tree like the parameters': bool arrays, or ``optax.MaskedNode()`` for
        a leaf of which everything is kept. Those of leaves that the state holds dense
        are not used.

    Returns:
      The state with these masks, placed on devices as the old ones were.

    Raises:
      ValueError: if the masks do not fit or are not bool.

    Example:
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
      where: which leaves get a mask, as in :class:`Rule`; None is every floating leaf.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is not zero, and
      ``optax.MaskedNode()`` for other leaves.

    Example:
      >>> masks = masks_from_params({"kernel": jnp.array([0.0, 0.5]), "step": 3})
      >>> print(masks["kernel"], masks["step"])
      [False  True] MaskedNode()
    """
    treedef: Any = jax.tree.structure(params)
    selection = Rule(schedule=None, where=_is_floating if where is None else where)
    masks = [
        is_nonzero(jnp.asarray(leaf.value))
        if selection.selects(leaf)
        else optax.MaskedNode()
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

    A `MaskedNode` of either tree stands for everything below its path: `optax.masked`
    and `optax.partition` put one in the place of a whole layer.

    Args:
      tree: parameters, or a tree like them.
      masks: their masks.

    Returns:
      ``(name, leaf, mask)`` for each leaf; the mask of a dense leaf is a `MaskedNode`.

    Raises:
      ValueError: if the trees differ, or a mask does not fit its leaf.
    """
    names = [leaf.name for leaf in _paths.named_leaves(tree, is_dense)]
    pairs = list(_pair((), tree, masks))
    for name, (leaf, mask) in zip(names, pairs, strict=True):
        if not is_dense(mask):
            check_fits(name, leaf, mask)
    return [(name, *pair) for name, pair in zip(names, pairs, strict=True)]


def _pair(path: _paths.Path, tree: Any, masks: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of the tree with their masks, level by level."""
    tree, masks = _paths.open_box(tree), _paths.open_box(masks)
    if is_dense(tree) or is_dense(masks):
        leaves = [tree] if is_dense(tree) else jax.tree.leaves(tree, is_leaf=is_dense)
        yield from ((leaf, optax.MaskedNode()) for leaf in leaves)
        return
    levels = _level(path, tree, masks)
    if levels is None:
        yield tree, masks
    else:
        for name, child, mask in levels:
            yield from _pair((*path, name), child, mask)


def _merge(masks: Any, other: Any, path: _paths.Path = ()) -> Any:
    """What the masks of two links keep together, level by level."""
    if is_dense(masks):
        return other
    if is_dense(other):
        return masks
    levels = _level(path, masks, other)
    if levels is None:
        return masks & other
    treedef: Any = jax.tree.structure(masks, is_leaf=lambda node: node is not masks)
    return treedef.unflatten(
        [_merge(one, two, (*path, name)) for name, one, two in levels]
    )


def _level(
    path: _paths.Path, tree: Any, masks: Any
) -> list[tuple[str, Any, Any]] | None:
    """The children of two nodes side by side; None if both are leaves."""
    below, masks_below = _paths.children(tree), _paths.children(masks)
    if below is None and masks_below is None:
        return None
    names = None if below is None else [name for name, _ in below]
    mask_names = None if masks_below is None else [name for name, _ in masks_below]
    if below is None or masks_below is None or names != mask_names:
        raise ValueError(
            f"the masks do not fit the tree: at {_paths.join(path)!r} the tree has "
            f"{_describe(names)}, the masks have {_describe(mask_names)}. A dense leaf "
            "needs optax.MaskedNode() in its place; the masks of several models are "
            "read one at a time."
        )
    return [
        (name, child, mask)
        for (name, child), (_, mask) in zip(below, masks_below, strict=True)
    ]


def _describe(names: list[str] | None) -> str:
    """What stands at a place of a tree, for an error."""
    return "a leaf" if names is None else f"the keys {names}"


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


def _is_floating(path: _paths.Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be pruned at all."""
    del path
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _in_place_of(old: jax.Array, new: Any) -> jax.Array:
    """The new mask, laid out over devices as the old one."""
    if is_dense(new):
        return jnp.ones_like(old)
    if is_traced(old) or is_traced(new):
        return new
    return jax.device_put(new, old.sharding)
