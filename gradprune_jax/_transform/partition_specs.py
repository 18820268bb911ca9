"""Partition specs: the shard of each leaf inside `shard_map`, from what users give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from gradprune_jax import _tree
from gradprune_jax._layouts import manual_axes
from gradprune_jax._top_k import Shard, axis_size, whole


def shards(
    tree: Any,
    partition_specs: Any,
    *,
    may_be_whole: bool = False,
    is_leaf: Callable[[Any], bool] | None = None,
) -> list[Shard]:
    """The shard of each leaf of a tree.

    Args:
      tree: the parameters, local pieces if `partition_specs` is given.
      partition_specs: a tree or prefix of `PartitionSpec`, as given to `shard_map`;
        None where every leaf is whole.
      may_be_whole: whether leaves outside `shard_map` are whole, in spite of the specs;
        else that is an error.
      is_leaf: nodes to take as leaves, as in `jax.tree.leaves`. None as a leaf is
        whole.

    Returns:
      One `Shard` for each leaf.

    Raises:
      ValueError: if the specs do not fit the tree, or name an axis that is not there.
    """
    leaves = _tree.named_leaves(tree, is_leaf)
    if partition_specs is None or (may_be_whole and not manual_axes()):
        return [whole(np.shape(leaf.value)) for leaf in leaves]
    specs = _broadcast_prefix(partition_specs, tree, is_leaf)
    return [
        whole(())
        if leaf.value is None
        else _shard(leaf.name, np.shape(leaf.value), spec)
        for leaf, spec in zip(leaves, specs, strict=True)
    ]


def _shard(name: str, local_shape: tuple[int, ...], spec: PartitionSpec) -> Shard:
    """The shard of a leaf of this local shape under this spec."""
    if len(spec) > len(local_shape):
        raise ValueError(
            f"the partition spec of {name!r} is {spec}, longer than its shape "
            f"{local_shape}."
        )
    entries = [*spec, *[None] * (len(local_shape) - len(spec))]
    axis_names = tuple(
        () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        for entry in entries
    )
    shape = []
    for size, dimension_names in zip(local_shape, axis_names, strict=True):
        for axis in dimension_names:
            try:
                size *= axis_size(axis)
            except NameError:
                raise ValueError(
                    f"the partition spec of {name!r} is {spec}, but {axis!r} is no "
                    "axis of an enclosing shard_map. Give partition_specs only "
                    "inside shard_map; under jit the sharding is found by itself."
                ) from None
        shape.append(size)
    return Shard(tuple(shape), axis_names)


def _broadcast_prefix(
    partition_specs: Any, tree: Any, is_leaf: Callable[[Any], bool] | None
) -> list[PartitionSpec]:
    """One spec for each leaf of the tree, from a tree of specs or a prefix of it."""

    def is_spec(node: Any) -> bool:
        return isinstance(node, PartitionSpec) or node is None

    prefix: list[Any]
    treedef: Any
    prefix, treedef = jax.tree.flatten(partition_specs, is_leaf=is_spec)
    try:
        subtrees = treedef.flatten_up_to(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"partition_specs is not a prefix of the parameters' tree: {error}"
        ) from None
    specs: list[PartitionSpec] = []
    for spec, subtree in zip(prefix, subtrees, strict=True):
        if not is_spec(spec):
            raise ValueError(
                f"partition_specs has a leaf {spec!r}; every leaf must be a "
                "jax.sharding.PartitionSpec."
            )
        whole_spec = PartitionSpec() if spec is None else spec
        specs += [whole_spec] * len(jax.tree.leaves(subtree, is_leaf=is_leaf))
    return specs
