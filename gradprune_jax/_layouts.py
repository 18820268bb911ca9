"""Layouts: which mesh axes there are, and arrays laid out as others are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def laid_out_like(mask: jax.Array, weight: jax.Array) -> jax.Array:
    """Lays out a mask over devices as its weight is, in explicit sharding mode.

    It may have been restored from a checkpoint with another layout, and XLA leaves out
    mesh axes of one device.
    """
    if _are_alike(mask, weight):
        return mask
    wanted = jax.typeof(weight).sharding
    return resharded(mask, wanted.mesh, wanted.spec)


def where_laid_out(mask: jax.Array, kept: Any, other: Any) -> jax.Array:
    """`kept` where the mask is True, else `other`, whatever their layouts."""
    if _are_alike(mask, kept) and _are_alike(other, kept):
        return jnp.where(mask, kept, other)
    return _where_in_one_layout(mask, kept, other)


@jax.jit
def _where_in_one_layout(
    mask: jax.Array, kept: jax.Array, other: jax.Array
) -> jax.Array:
    return jnp.where(laid_out_like(mask, kept), kept, laid_out_like(other, kept))


def resharded(array: jax.Array, mesh: Any, spec: PartitionSpec) -> jax.Array:
    """The array laid out by a spec, in explicit mode.

    The mesh is that of an array's type: nobody needs to have set one.
    """
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def replicated(array: jax.Array) -> jax.Array:
    """The array with all of it on every device, where its type says otherwise."""
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return resharded(array, sharding.mesh, PartitionSpec(*[None] * array.ndim))


def manual_axes() -> tuple[str, ...]:
    """The mesh axes that have a name here, those of an enclosing `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Manual)


def _are_alike(mask: Any, weight: Any) -> bool:
    """Whether two arrays have the same layout, as far as their types say."""
    if not (isinstance(mask, jax.Array) and isinstance(weight, jax.Array)):
        return True
    own, wanted = jax.typeof(mask).sharding, jax.typeof(weight).sharding
    return own == wanted or not any((*own.spec, *wanted.spec))
