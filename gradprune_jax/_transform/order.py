"""Order: a mask update on a mesh of CPU devices waits for what comes before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import manual_axes
from gradprune_jax._top_k import Shard


def after(
    step: jax.Array, arrays: Sequence[Any], placement: Sequence[Shard]
) -> jax.Array:
    """Makes the step depend on arrays, so that it is known only after them.

    Only on a mesh of CPU devices: elsewhere the step is returned as it is. XLA's
    executor for CPUs starts whatever is ready. A mask update depends on little,
    so its all-reduces would run beside those of the backward pass, in another order on
    each device. Each of them holds a thread until all devices have come to it, and with
    no more threads than devices the program hangs. So here a mask update waits for what
    was computed before it: the step becomes a number that depends on all of it.

    Args:
      step: integer scalar, at least 0.
      arrays: what is to be computed first.
      placement: where the leaves lie.

    Returns:
      The same number, which is known only once the arrays are.
    """
    # Outside of programs each operation ends before the next begins.
    arrays = [array for array in arrays if is_traced(array) and _has_numbers(array)]
    if jax.default_backend() != "cpu" or not _is_split(arrays, placement):
        return step
    any_set = functools.reduce(jnp.logical_or, map(jnp.any, arrays))
    any_set = any_set.astype(step.dtype)
    manual = manual_axes()
    if manual:  # the step is one number for all devices
        any_set = jax.lax.pmax(any_set, manual)
    # XLA does not know that no step is negative.
    return jnp.where(step < 0, any_set, step)


def _has_numbers(array: Any) -> bool:
    """Whether an array is one of numbers or flags; not one of random keys."""
    return jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool


def _is_split(arrays: Sequence[Any], placement: Sequence[Shard]) -> bool:
    """Whether a mask update has collectives, as far as types say."""
    if arrays and any(shard.split_axes for shard in placement):
        return True
    return any(
        kind != AxisType.Manual and size > 1
        for array in arrays
        for kind, size in _mesh_axes(array)
    )


def _mesh_axes(array: Any) -> list[tuple[AxisType, int]]:
    """The kinds and sizes of the axes of an array's mesh."""
    mesh = jax.typeof(array).sharding.mesh
    return list(zip(mesh.axis_types, mesh.axis_sizes, strict=True))
