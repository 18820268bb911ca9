"""The name of a parameter: the same path in every kind of tree, boxed or plain.

Flax wraps parameters in boxes (`nnx.Param`, `nn.Partitioned`), and takes them out
again between `init` and `update`. A box is not a level of the tree that a user sees,
so it adds nothing to a path: `Dense_0/kernel` is the same parameter boxed or plain.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from flax import nnx
from flax.core import meta
from jax import tree_util
from jax.tree_util import keystr

from gradprune_jax._checks import is_traced

Path = tuple[str, ...]

# What is an array to JAX, and has no dtype.
_NUMBERS = bool | int | float | complex
_BOXES = (nnx.Variable, meta.AxisMetadata)


class Leaf(NamedTuple):
    """A leaf of a tree, with the path that names it.

    Attributes:
      path: the keys that lead to the leaf, without the boxes around it.
      name: the path as one string, unique in its tree.
      value: the leaf itself, out of its box.
    """

    path: Path
    name: str
    value: Any


def check_arrays(leaves: Iterable[Leaf]) -> None:
    """Refuses parameters that no function of arrays takes."""
    for leaf in leaves:
        if not hasattr(leaf.value, "dtype") and not isinstance(leaf.value, _NUMBERS):
            raise ValueError(
                f"parameter {leaf.name!r} is {leaf.value!r}, no array; let the "
                "function close over what is none, as by equinox.partition(model, "
                "equinox.is_array)."
            )


def check_values(leaves: Iterable[Leaf], name: str) -> None:
    """Refuses parameters whose values are not known.

    Args:
      leaves: the parameters.
      name: of the function that needs them.
    """
    for leaf in leaves:
        if is_traced(leaf.value):
            raise ValueError(
                f"parameter {leaf.name!r} is traced; call {name} outside jit."
            )
        if isinstance(leaf.value, jax.ShapeDtypeStruct):
            raise ValueError(
                f"parameter {leaf.name!r} is a shape without values; {name} needs the "
                "parameters themselves."
            )


def is_box(node: Any) -> bool:
    """Whether `node` is a wrapper around one parameter, not a level of the tree."""
    return isinstance(node, _BOXES)


def is_model(node: Any) -> bool:
    """Whether `node` is a whole nnx module, not the state of one."""
    return isinstance(node, nnx.Pytree)


def parameters(tree: Any) -> Any:
    """The tree with `nnx.state(model, nnx.Param)` in place of each nnx model.

    A model also holds batch statistics and random keys, a parameter that is shared
    twice, and a state of its own; an optimizer and its masks know none of these.
    """

    def parameters_of(node: Any) -> Any:
        return nnx.state(node, nnx.Param) if is_model(node) else node

    return jax.tree.map(parameters_of, tree, is_leaf=is_model)


def without_variables(tree: Any) -> Any:
    """The tree with nnx variables replaced by the arrays that they hold."""

    def value(node: Any) -> Any:
        if not isinstance(node, nnx.Variable):
            return node
        return open_box(node)

    return jax.tree.map(value, tree, is_leaf=lambda n: isinstance(n, nnx.Variable))


def with_parameters(tree: Any, parameters: Any) -> Any:
    """The tree with new parameters; an nnx model becomes a new model."""

    def renewed(node: Any, own: Any) -> Any:
        if not is_model(node):
            return own
        graphdef, _, *others = nnx.split(node, nnx.Param, ...)
        return nnx.merge(graphdef, own, *others)

    return jax.tree.map(renewed, tree, parameters, is_leaf=is_model)


def join(path: Path) -> str:
    """The path as it is printed and matched: keys joined by `/`."""
    return "/".join(path)


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Leaf]:
    """Every leaf of `tree`, in the order of `jax.tree.leaves`, with its path.

    Two leaves may print alike (`{'a': {'0': x}}` beside `{'a/0': y}`): a printed path
    is no identity. Such leaves are named by their full key path, `['a']['0']`.

    Args:
      tree: any pytree: dicts, lists, tuples, NamedTuples, Flax and Equinox modules.
      is_leaf: nodes to take as leaves, as in `jax.tree.leaves`.

    Returns:
      One `Leaf` for each leaf.

    Examples:
      >>> [leaf.name for leaf in named_leaves({"layers": [{"kernel": 0.0}]})]
      ['layers/0/kernel']
    """
    found = list(_walk((), tree, is_leaf))
    paths = [tuple(_key_name(key) for key in keys) for keys, _ in found]
    times_printed = collections.Counter(map(join, paths))
    return [
        Leaf(
            path=path,
            name=join(path) if times_printed[join(path)] == 1 else keystr(keys),
            value=value,
        )
        for path, (keys, value) in zip(paths, found, strict=True)
    ]


def children(node: Any) -> list[tuple[str, Any]] | None:
    """The nodes one level below, with their names; None if `node` is a leaf."""
    below = _below(node)
    if below is None:
        return None
    return [(_key_name(key), child) for key, child in below]


def open_box(node: Any) -> Any:
    """Unwrap a box (an nnx variable or `nn.Partitioned`); return anything else."""
    while is_box(node):
        contents = children(node)
        node = contents[0][1] if contents else None
    return node


def _walk(
    prefix: tuple[Any, ...], node: Any, is_leaf: Callable[[Any], bool] | None
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The key path and value of every leaf; the keys of boxes are left out."""
    node = open_box(node)
    below = None if is_leaf is not None and is_leaf(node) else _below(node)
    if below is None:
        yield prefix, node
    else:
        for key, child in below:
            yield from _walk((*prefix, key), child, is_leaf)


def _below(node: Any) -> list[tuple[Any, Any]] | None:
    """The nodes one level below, with their keys; None if `node` is a leaf."""
    found, _ = tree_util.tree_flatten_with_path(node, is_leaf=lambda n: n is not node)
    if any(not keys for keys, _ in found):
        return None
    return [(keys[0], child) for keys, child in found]


def _key_name(key: Any) -> str:
    """One key of a key path, as a user writes it."""
    match key:
        case tree_util.DictKey(key=name) | tree_util.FlattenedIndexKey(key=name):
            return str(name)
        case tree_util.GetAttrKey(name=name):
            return str(name)
        case tree_util.SequenceKey(idx=index):
            return str(index)
        case _:  # a key type of another library's own containers
            return str(getattr(key, "key", getattr(key, "name", key)))
