"""Masks: reading them out of an optimizer's state, and putting them into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import select
from gradprune_jax._rules.rule import Rule, Where, assign
from gradprune_jax._state import GradualPruneState, check_fits, is_dense
from gradprune_jax._top_k.keys import is_nonzero
from gradprune_jax._transform.line_search import forget_losses


def get_masks(opt_state: Any) -> Any:
    """The masks in an optimizer's state, wherever they are nested.

    Args:
      opt_state: the state of any optimizer with `gradual_prune` in it, however
        wrapped (`chain`, `MultiSteps`, `partition`, `inject_hyperparams`), or an
        `nnx.Optimizer`.

    Returns:
      A tree like the parameters': bool arrays, True where a weight is kept, and
      `optax.MaskedNode()` where a leaf is dense. Masks of several links are merged:
      a weight is kept where all of them keep it. From nnx, plain arrays, no variables;
      `nnx.to_pure_dict` makes a dictionary of them, to map over with that of the
      parameters.

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
        _without_variables(state.masks) for state in prune_states(opt_state)
    ]
    for other in others:
        masks = _merge(masks, other)
    return masks


def set_masks(opt_state: Any, masks: Any) -> Any:
    """The same optimizer state with other masks: to start from, or go back to, a model.

    The count of steps stays. Masks only shrink from here on, as always; apply them to
    the parameters too (`apply_masks`).

    Args:
      opt_state: a state as for `get_masks`.
      masks: a tree like the parameters': bool arrays, or `optax.MaskedNode()` for
        a leaf of which everything is kept. Those of leaves that the state holds dense
        are not used.

    Returns:
      The state with these masks, placed on devices as the old ones were; where the old
      ones are NumPy arrays, as they are. A loss that a line search kept is forgotten.

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
    """Masks that keep the weights that are not zero: those of a sparse model.

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
    selection = Rule(schedule=None, where=_is_floating if where is None else where)
    if where is not None:
        assign([selection], params)  # refuses one that matches nothing
    masks = [
        _mask_of(leaf) if selection.selects(leaf) else optax.MaskedNode()
        for leaf in _tree.named_leaves(params)
    ]
    return _without_variables(treedef.unflatten(masks))


def apply_masks(tree: Any, masks: Any) -> Any:
    r"""Zeroes what the masks prune: $w \leftarrow w$ where m, else +0.0.

    For copies that the optimizer does not see: an exponential moving average, the
    evaluation point of `schedule_free`, restored or rewound parameters.

    Args:
      tree: parameters, or a tree like them, plain or boxed; or a whole Equinox or nnx
        model.
      masks: masks as `get_masks` returns them. None, which `equinox.filter`
        leaves in the place of a function, is no mask.

    Returns:
      The tree, zero where a mask is False. A select: NaN is zeroed too. A leaf without
      a mask is returned as it is; an nnx model as a new one.

    Raises:
      ValueError: if the masks do not fit the tree.

    Examples:
      >>> print(apply_masks(jnp.array([1.0, -2.0]), jnp.array([True, False])))
      [1. 0.]
    """
    params = _tree.parameters(tree)
    treedef: Any = jax.tree.structure(params, is_leaf=is_dense)
    masked = treedef.unflatten(
        [
            leaf if is_dense(mask) else select(mask, leaf, jnp.zeros_like(leaf))
            for _, leaf, mask in pair_with_masks(params, masks)
        ]
    )
    return jax.tree.map(_with_parameters, tree, masked, is_leaf=_tree.is_model)


def pair_with_masks(tree: Any, masks: Any) -> list[tuple[str, Any, Any]]:
    """Each leaf's name, the leaf and its mask, whichever of the trees is boxed.

    A `MaskedNode` of either tree stands for everything below its path: `optax.masked`
    and `optax.partition` put one in the place of a whole layer. None among the masks
    does too: `equinox.filter` puts it in the place of a function. Keys are matched by
    name: a dict and an `OrderedDict` in another order are the same tree.

    Args:
      tree: parameters, or a tree like them. An nnx model stands for its parameters.
      masks: their masks.

    Returns:
      `(name, leaf, mask)` for each leaf; the mask of a dense leaf is a `MaskedNode`.

    Raises:
      ValueError: if the trees differ, or a mask does not fit its leaf.
    """
    tree, masks = _tree.parameters(tree), _tree.parameters(masks)
    names = [leaf.name for leaf in _tree.named_leaves(tree, is_dense)]
    pairs = list(_pair((), tree, masks))
    for name, (leaf, mask) in zip(names, pairs, strict=True):
        if not is_dense(mask):
            _check_arrays(name, leaf, mask)
            check_fits(name, leaf, mask)
    return [(name, *pair) for name, pair in zip(names, pairs, strict=True)]


def _pair(path: _tree.Path, tree: Any, masks: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of the tree with their masks, level by level."""
    tree, masks = _tree.open_box(tree), _tree.open_box(masks)
    if is_dense(tree) or _is_no_mask(masks):
        leaves = [tree] if is_dense(tree) else jax.tree.leaves(tree, is_leaf=is_dense)
        yield from ((leaf, optax.MaskedNode()) for leaf in leaves)
        return
    levels = _level(path, tree, masks)
    if levels is None:
        yield tree, masks
    else:
        for name, child, mask in levels:
            yield from _pair((*path, name), child, mask)


def _merge(masks: Any, other: Any, path: _tree.Path = ()) -> Any:
    """What the masks of two links keep together, level by level."""
    if _is_no_mask(masks):
        return other
    if _is_no_mask(other):
        return masks
    levels = _level(path, masks, other)
    if levels is None:
        return masks & other
    treedef: Any = jax.tree.structure(masks, is_leaf=lambda node: node is not masks)
    return treedef.unflatten(
        [_merge(one, two, (*path, name)) for name, one, two in levels]
    )


def _level(
    path: _tree.Path, tree: Any, masks: Any
) -> list[tuple[str, Any, Any]] | None:
    """The children of two nodes side by side; None if both are leaves."""
    below, masks_below = _tree.children(tree), _tree.children(masks)
    if below is None and masks_below is None:
        return None
    names = None if below is None else [name for name, _ in below]
    mask_names = None if masks_below is None else [name for name, _ in masks_below]
    if (
        below is None
        or masks_below is None
        or sorted(name for name, _ in below) != sorted(name for name, _ in masks_below)
    ):
        raise ValueError(
            f"the masks do not fit the tree: at {_tree.join(path)!r} the tree has "
            f"{_describe(names)}, the masks have {_describe(mask_names)}. A dense leaf "
            "needs optax.MaskedNode() in its place; the masks of several models are "
            "read one at a time."
        )
    if names != mask_names:  # an OrderedDict keeps the order of its making
        place = {name: i for i, (name, _) in enumerate(below)}
        masks_below = sorted(masks_below, key=lambda child: place[child[0]])
    return [
        (name, child, mask)
        for (name, child), (_, mask) in zip(below, masks_below, strict=True)
    ]


def _describe(names: list[str] | None) -> str:
    """What stands at a place of a tree, for an error."""
    return "a leaf" if names is None else f"the keys {names}"


def _is_no_mask(mask: Any) -> bool:
    """Whether nothing below this place is pruned."""
    return mask is None or is_dense(mask)


def _check_arrays(name: str, leaf: Any, mask: Any) -> None:
    """Refuses a mask of what is no array, and a mask that is none."""
    if not hasattr(leaf, "shape"):
        raise ValueError(
            f"there is a mask for {name!r}, which is {leaf!r} and no array. The masks "
            "are those of another tree."
        )
    if not hasattr(mask, "dtype"):
        raise ValueError(
            f"the mask of {name!r} is {mask!r}; it must be an array of bool, or "
            "optax.MaskedNode() where everything is kept."
        )


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


def _with_parameters(node: Any, parameters: Any) -> Any:
    """A new nnx model with these parameters; any other node is exchanged for them."""
    if not _tree.is_model(node):
        return parameters
    graphdef, _, *others = nnx.split(node, nnx.Param, ...)
    return nnx.merge(graphdef, parameters, *others)


def _mask_of(leaf: _tree.Leaf) -> jax.Array:
    """Where a leaf is not zero."""
    if not jnp.issubdtype(leaf.value.dtype, jnp.floating):
        raise ValueError(
            f"{leaf.name!r} has dtype {leaf.value.dtype}, which is not a floating "
            "dtype and cannot be pruned; narrow where so that it does not match it."
        )
    return is_nonzero(jnp.asarray(leaf.value))


def _is_floating(path: _tree.Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf can be pruned at all."""
    del path
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _in_place_of(old: Any, new: Any) -> Any:
    """The new mask, laid out over devices as the old one."""
    if is_dense(new):
        return jnp.ones_like(old)
    if is_traced(old) or is_traced(new) or not isinstance(old, jax.Array):
        return new  # a restored state may hold NumPy arrays, which are on no device
    return jax.device_put(new, old.sharding)
