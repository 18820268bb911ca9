"""Pairing: trees brought together with their masks, whichever of the two is boxed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import where_laid_out
from gradprune_jax._state import check_fits, is_dense
from gradprune_jax._top_k import is_nonzero


def map_with_masks(fn: Callable[[Any, Any], Any], params: Any, masks: Any) -> Any:
    """Applies a function to every pruned leaf and its mask.

    Works whichever of the trees is boxed (`nnx.State`, `nn.Partitioned`). A dense leaf
    has `MaskedNode` or None among the masks.

    Args:
      fn: takes a leaf and its mask, two arrays of one shape, and returns the new leaf.
      params: parameters, or a tree like them, plain or boxed; or a whole Equinox or nnx
        model.
      masks: masks as `get_masks` returns them. None, which `equinox.filter` leaves in
        the place of a function, is no mask.

    Returns:
      The tree with `fn(leaf, mask)` in the place of each pruned leaf; dense leaves are
      returned as they are, and an nnx model as a new one.

    Raises:
      ValueError: if the masks do not fit the tree.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "bias": jnp.ones(2)}
      >>> masks = {"kernel": params["kernel"] != 0, "bias": optax.MaskedNode()}
      >>> kept = gp.map_with_masks(lambda leaf, mask: leaf[mask], params, masks)
      >>> print(kept["kernel"], kept["bias"])
      [3. 2.] [1. 1.]
    """
    own = _tree.parameters(params)
    treedef: Any = jax.tree.structure(own, is_leaf=is_dense)
    mapped = treedef.unflatten(
        [
            leaf if is_dense(mask) else fn(leaf, mask)
            for _, leaf, mask in pair_with_masks(own, masks)
        ]
    )
    return _tree.with_parameters(params, mapped)


def apply_masks(tree: Any, masks: Any) -> Any:
    """Sets the pruned weights of a tree to +0.0.

    For copies that the optimizer does not see: an exponential moving average, the
    evaluation point of `schedule_free`, restored or rewound parameters.

    Args:
      tree: parameters, or a tree like them, plain or boxed; or a whole Equinox or nnx
        model.
      masks: masks as `get_masks` returns them. None, which `equinox.filter`
        leaves in the place of a function, is no mask.

    Returns:
      The tree, zero where a mask is False, also where the weight is NaN. A leaf without
      a mask is returned unchanged. An nnx model is copied, not changed in place.

    Raises:
      ValueError: if the masks do not fit the tree.

    Examples:
      >>> print(apply_masks(jnp.array([1.0, -2.0]), jnp.array([True, False])))
      [1. 0.]
    """
    return map_with_masks(zeroed, tree, masks)


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


def merge_masks(masks: Any, other: Any, path: _tree.Path = ()) -> Any:
    """What the masks of two links keep together, level by level."""
    if _is_no_mask(masks):
        return other
    if _is_no_mask(other):
        return masks
    levels = _level(path, masks, other)
    if levels is None:
        are_shapes = isinstance(masks, jax.ShapeDtypeStruct)
        return masks if are_shapes else masks & other
    treedef: Any = jax.tree.structure(masks, is_leaf=lambda node: node is not masks)
    return treedef.unflatten(
        [merge_masks(one, two, (*path, name)) for name, one, two in levels]
    )


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
    if leaf.dtype == jnp.float8_e8m0fnu:
        raise ValueError(
            f"there is a mask for {name!r}, whose dtype {leaf.dtype} has no zero; put "
            "optax.MaskedNode() in its place."
        )


def zeroed(leaf: Any, mask: Any) -> Any:
    """The leaf where its mask is True, else +0.0; wide NumPy arrays stay such."""
    if is_wide(leaf) and not is_traced(mask):
        return np.where(mask, leaf, np.zeros_like(leaf))
    weights = jnp.asarray(leaf)
    return where_laid_out(mask, weights, jnp.zeros_like(weights))


def nonzero(leaf: Any) -> jax.Array:
    """Where a leaf is not zero, or a mask is True; wide NumPy arrays in their dtype."""
    if is_wide(leaf):
        return jnp.asarray(leaf != 0)
    return is_nonzero(jnp.asarray(leaf))


def is_wide(leaf: Any) -> bool:
    """Whether a leaf is a NumPy array of a dtype that JAX would narrow.

    Under jit it is what JAX makes of it, like every constant there.
    """
    if not isinstance(leaf, np.ndarray) or is_traced(jnp.zeros([])):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
