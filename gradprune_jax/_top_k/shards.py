"""Shards: where a local array lies in its whole leaf, inside `shard_map`.

Under `jit` and `pmap` every leaf is whole and nothing here does anything. Inside
`shard_map` a leaf is the local piece of an array that a `PartitionSpec` splits over
named mesh axes: counts are then summed over those axes, and no others, and positions
are those in the whole array.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gradprune_jax._geometry import unit_shape
from gradprune_jax._layouts import resharded


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

    def positions(self, dimension: int, local_size: int, stride: int) -> jax.Array:
        """The indices along one dimension of the whole array, uint32 [local_size].

        Args:
          dimension: of the array.
          local_size: the length of the local piece.
          stride: by what an index is multiplied.
        """
        positions = jnp.arange(local_size, dtype=jnp.uint32)
        if self.axis_names[dimension]:
            positions += self.offset(dimension, local_size)
        return positions if stride == 1 else positions * stride

    def offset(self, dimension: int, local_size: int) -> jax.Array:
        """The first index of the local piece along one dimension, uint32 scalar."""
        index = jnp.zeros((), jnp.uint32)
        for name in self.axis_names[dimension]:
            index = index * axis_size(name)
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
    split = math.prod(map(axis_size, shard.axis_names[dimension]))
    names = jax.typeof(array).sharding.spec[dimension]  # in explicit mode alone
    names = names if isinstance(names, tuple) else (names,) if names else ()
    return split * math.prod(jax.typeof(array).sharding.mesh.shape[n] for n in names)


def whole(shape: tuple[int, ...]) -> Shard:
    """A leaf that is not split."""
    return Shard(shape, ((),) * len(shape))


def axis_size(name: str) -> int:
    """The size of a mesh axis, a Python number at trace time."""
    return int(jax.lax.psum(1, name))
