"""Summation: how many of a leaf's units are marked, in little memory and time.

XLA fuses a short sum with the operations that make its operand. On CPU it takes a sum
over more than 32 neighbours apart, and writes the operand to memory first: four bytes
for every bool. So neighbours are summed in groups of at most 32, and then the sums of
the groups. Two markings are summed at once, in the halves of an integer. (Everywhere
else in this folder a group is of slices.)

A group must not reach from one device to the next, or data would be moved. Devices hold
an axis in equal parts. The type of an array says how many, if it was put on a mesh
before it was traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# A sum or a maximum over some axes.
Reduction = Callable[[jax.Array, tuple[int, ...]], jax.Array]

# Smaller arrays are summed as they are.
SMALLEST_IN_RUNS = 2**12
# How many neighbours XLA sums at once, without writing them to memory before.
LONGEST_RUN = 32
# The same across other axes, whose units are not neighbours in memory.
LONGEST_ACROSS = 8
# Where groups hold fewer units, their sums take more than half a byte a unit.
ENOUGH_IN_RUNS = 12
# Smaller arrays are assumed to be on one device, where the mesh is not known and no
# group fits otherwise.
SMALLEST_SPLIT = 2**18
# Over how many devices an axis may be split where the mesh is not known: `in_shardings`
# are known only when the program is compiled.
USUAL_DEVICES = 16


def sum_one(marked: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum a bool array over `axes`: uint32."""
    return _sum_packed(marked.astype(jnp.uint32), axes, fields=1)[0]


def sum_pair(one: jax.Array, other: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum two bool arrays over `axes`, in one read: uint32 [2, ...]."""
    packed = one.astype(jnp.uint32) | (other.astype(jnp.uint32) << 16)
    if packed.size < SMALLEST_IN_RUNS or not axes or run_sizes(packed, axes[-1]):
        return _sum_packed(packed, axes, fields=2)
    if len(axes) == packed.ndim and _is_on_one_device(packed):
        even = packed.size - packed.size % LONGEST_RUN
        parts = jnp.split(packed.ravel(), [even])
        grouped = _sum_packed(parts[0], (0,), fields=2, groups={0: LONGEST_RUN})
        return grouped + _sum_packed(parts[1], (0,), fields=2)
    parts = _even_parts(packed, axes[-1])
    sums = [_sum_packed(part, axes, fields=2) for part in parts]
    return functools.reduce(jnp.add, sums)


def _sum_packed(
    packed: jax.Array,
    axes: tuple[int, ...],
    *,
    fields: int,
    groups: dict[int, int] | None = None,
) -> jax.Array:
    """Sum each half of integers over `axes`: uint32 [fields, ...].

    The halves are 0 or 1, and groups are short, so that no half overflows.
    """
    sums = packed
    if sums.size >= SMALLEST_IN_RUNS:
        sums = reduce_runs(add_up, sums, groups or _groups(sums, axes))
    # Signed and unsigned in turns, or XLA would merge one sum with the next.
    sums = jax.lax.bitcast_convert_type(sums, jnp.int32)
    shifts = np.array([0, 16][:fields], np.int32).reshape(-1, *[1] * sums.ndim)
    unpacked = (jnp.expand_dims(sums, 0) >> shifts) & 0xFFFF
    axes = tuple(axis + 1 for axis in axes)
    if packed.size >= SMALLEST_IN_RUNS:
        unpacked = reduce_runs(add_up, unpacked, _groups(unpacked, axes))
    unpacked = jax.lax.bitcast_convert_type(unpacked, jnp.uint32)
    return jnp.sum(unpacked, axes, dtype=jnp.uint32)


def reduce_runs(
    reduce: Reduction, numbers: jax.Array, groups: dict[int, int]
) -> jax.Array:
    """Reduce groups of neighbours to one number each.

    Args:
      reduce: the reduction.
      numbers: the array.
      groups: for some axes, the size of the groups along them; it divides the axis.
    """
    grouped: list[int] = []
    for axis in sorted(groups, reverse=True):
        numbers = split_axis(numbers, axis, groups[axis])
        grouped = [axis + 1, *(other + 1 for other in grouped)]
    return reduce(numbers, tuple(grouped))


def split_axis(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Split an axis in two: groups, and the `size` neighbours in each.

    One axis at a time, because explicit sharding mode allows no more.
    """
    groups = array.shape[axis] // size
    return array.reshape(*array.shape[:axis], groups, size, *array.shape[axis + 1 :])


def add_up(numbers: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over axes in the integers' own dtype, which JAX might widen."""
    return jnp.sum(numbers, axes, dtype=numbers.dtype)


def _groups(array: jax.Array, axes: tuple[int, ...]) -> dict[int, int]:
    """Choose the axes to sum in groups, and the size of the groups along each.

    Neighbours in memory lie along the last axis, so its groups may be long. Other axes
    are summed in groups only where that leaves too many sums.
    """
    groups: dict[int, int] = {}
    for axis in reversed(axes):
        if math.prod(groups.values()) >= ENOUGH_IN_RUNS:
            break
        sizes = run_sizes(array, axis)
        if axis != axes[-1]:
            sizes = [size for size in sizes if size <= LONGEST_ACROSS]
        if sizes:
            groups[axis] = sizes[-1]
    return groups


def run_sizes(array: jax.Array, axis: int) -> list[int]:
    """List the sizes of groups that divide an axis and every device's part of it."""
    if is_split(array, axis):
        return []
    part = part_of_device(array, axis)
    return [size for size in range(2, LONGEST_RUN + 1) if part % size == 0]


def _even_parts(array: jax.Array, axis: int) -> list[jax.Array]:
    """Split an array along an axis in two, of which the first allows groups.

    Each device's part of the axis is split, so that no data moves.
    """
    part = part_of_device(array, axis)
    even = part - part % LONGEST_RUN
    if not even or is_split(array, axis):
        return [array]
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    by_device = array.reshape(*before, -1, part, *after)
    return [
        piece.reshape(*before, -1, *after)
        for piece in jnp.split(by_device, [even], axis=axis + 1)
    ]


def part_of_device(array: jax.Array, axis: int) -> int:
    """Return how much of an axis each device holds, if all devices split it."""
    mesh = jax.typeof(array).sharding.mesh
    devices = USUAL_DEVICES if mesh.empty else mesh.size
    length = array.shape[axis]
    return length // math.gcd(length, devices)


def _is_on_one_device(array: jax.Array) -> bool:
    """Whether an array on no known mesh is so small that it is assumed to be whole."""
    return jax.typeof(array).sharding.mesh.empty and array.size < SMALLEST_SPLIT


def is_split(array: jax.Array, axis: int) -> bool:
    """Whether an axis is known to be split over devices, in explicit mode alone."""
    return jax.typeof(array).sharding.spec[axis] is not None
