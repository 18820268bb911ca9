"""Shards: where a local array lies in its whole leaf, inside `shard_map`.

Under `jit` and `pmap` every leaf is whole and nothing here does anything. Inside
`shard_map` a leaf is the local piece of an array that a `PartitionSpec` splits over
named mesh axes: counts are then summed over those axes, and no others, and positions
are those in the whole array.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from gradprune_jax import _tree
from gradprune_jax._layouts import resharded
from gradprune_jax._structures import unit_shape


class Shard(NamedTuple):
    """One leaf's piece of its whole array.

    Attributes:
      shape: the shape of the whole array.
      axis_names: for each dimension, the mesh axes that split it, major first.
    """

    shape: tuple[int, ...]
    axis_names: tuple[tuple[str, ...], ...]

    @property
    def split_axes(self) -> tuple[str, ...]:
        """All mesh axes that split the leaf, in one order for every leaf."""
        return tuple(sorted(name for names in self.axis_names for name in names))

    def positions(self, dimension: int, local_size: int) -> jax.Array:
        """The indices along one dimension of the whole array, uint32 [local_size]."""
        local = jnp.arange(local_size, dtype=jnp.uint32)
        return local + self.offset(dimension, local_size)

    def offset(self, dimension: int, local_size: int) -> jax.Array:
        """The first index of the local piece along one dimension, uint32 scalar."""
        index = jnp.zeros((), jnp.uint32)
        for name in self.axis_names[dimension]:
            index = index * _axis_size(name)
            index += jax.lax.axis_index(name).astype(jnp.uint32)
        return index * local_size

    def without(self, dimension: int) -> Shard:
        """The shard of the same leaf, made whole along one dimension."""
        names = list(self.axis_names)
        names[dimension] = ()
        return self._replace(axis_names=tuple(names))

    def of_units(self, block: tuple[int, ...]) -> Shard:
        """The shard of an array of blocks, none of which is cut between devices.

        A block that spans an axis is the same on every device that has a part of it.
        """
        spans = [n >= size for n, size in zip(block, self.shape, strict=True)]
        return Shard(
            unit_shape(self.shape, block),
            tuple(
                () if spanned else names
                for names, spanned in zip(self.axis_names, spans, strict=True)
            ),
        )

    def gather(self, local: jax.Array, dimension: int) -> jax.Array:
        """Collect an array of the leaf's shape along one dimension, on every device."""
        names = self.axis_names[dimension]
        if names:
            return jax.lax.all_gather(local, names, axis=dimension, tiled=True)
        sharding = jax.typeof(local).sharding
        spec = list(sharding.spec)
        spec[dimension] = None
        return resharded(local, sharding.mesh, PartitionSpec(*spec))

    def own_part(
        self, array: jax.Array, dimension: int, local_size: int, axis: int
    ) -> jax.Array:
        """Cut the local piece out of an array that is whole along one dimension.

        Args:
          array: numbers along this dimension, and perhaps others.
          dimension: of the leaf.
          local_size: the length of the local piece.
          axis: the axis of the array that is this dimension.
        """
        if not self.axis_names[dimension]:  # explicit mode parts it again by itself
            return array
        start = self.offset(dimension, local_size)
        return jax.lax.dynamic_slice_in_dim(array, start, local_size, axis)

    def among_all(self, local: jax.Array, dimension: int, axis: int) -> jax.Array:
        """Put a local piece where it lies along the whole dimension, 0 elsewhere.

        The arguments are as of `own_part`.
        """
        if not self.axis_names[dimension]:
            return local
        shape = list(local.shape)
        shape[axis] = self.shape[dimension]
        start = self.offset(dimension, local.shape[axis])
        elsewhere = jnp.zeros_like(local, shape=shape)
        return jax.lax.dynamic_update_slice_in_dim(elsewhere, local, start, axis)


def parts(array: jax.Array, shard: Shard, dimension: int) -> int:
    """The number of equal parts into which devices split a dimension.

    Under `jit` the type of an array says so in explicit mode alone; else it is 1.
    """
    split = math.prod(map(_axis_size, shard.axis_names[dimension]))
    names = jax.typeof(array).sharding.spec[dimension]  # in explicit mode alone
    names = names if isinstance(names, tuple) else (names,) if names else ()
    return split * math.prod(jax.typeof(array).sharding.mesh.shape[n] for n in names)


def manual_axes() -> tuple[str, ...]:
    """The mesh axes that have a name here, those of an enclosing `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Manual)


def whole(shape: tuple[int, ...]) -> Shard:
    """A leaf that is not split."""
    return Shard(shape, ((),) * len(shape))


def shards(
    tree: Any, partition_specs: Any, *, may_be_whole: bool = False
) -> list[Shard]:
    """The shard of each leaf of a tree.

    Args:
      tree: the parameters, local pieces if `partition_specs` is given.
      partition_specs: a tree or prefix of `PartitionSpec`, as given to `shard_map`;
        None where every leaf is whole.
      may_be_whole: whether leaves outside `shard_map` are whole, in spite of the specs;
        else that is an error.

    Returns:
      One `Shard` for each leaf.

    Raises:
      ValueError: if the specs do not fit the tree, or name an axis that is not there.
    """
    leaves = _tree.named_leaves(tree)
    if partition_specs is None or (may_be_whole and not _is_in_shard_map()):
        return [whole(np.shape(leaf.value)) for leaf in leaves]
    specs = _broadcast_prefix(partition_specs, tree)
    return [
        _shard(leaf.name, np.shape(leaf.value), spec)
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
                size *= _axis_size(axis)
            except NameError:
                raise ValueError(
                    f"the partition spec of {name!r} is {spec}, but {axis!r} is no "
                    "axis of an enclosing shard_map. Give partition_specs only "
                    "inside shard_map; under jit the sharding is found by itself."
                ) from None
        shape.append(size)
    return Shard(tuple(shape), axis_names)


def _is_in_shard_map() -> bool:
    """Whether any mesh axis has a name here."""
    return bool(manual_axes())


def _axis_size(name: str) -> int:
    """The size of a mesh axis, a Python number at trace time."""
    return int(jax.lax.psum(1, name))


def _broadcast_prefix(partition_specs: Any, tree: Any) -> list[PartitionSpec]:
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
        specs += [whole_spec] * len(jax.tree.leaves(subtree))
    return specs
