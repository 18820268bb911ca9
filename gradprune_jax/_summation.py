"""Summation: how many of a leaf's units are marked, in little memory and time.

XLA fuses a sum with whatever makes its operand, if it is short. A sum over more than 32
neighbours it takes apart on CPU, and writes the operand to memory first: four bytes for
every bool. So units are summed in groups of at most 32, two markings at once in the
halves of an integer, and then the sums of the groups.

A group must not reach over a device's boundary, or data would be moved. Devices hold an
axis in equal parts. How many there are the type of an array says, where it was put on a
mesh before it was traced.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

# Smaller arrays are summed as they are.
SMALLEST_GROUPED = 2**12
# How many neighbours XLA sums in one go, without writing them to memory before.
LONGEST_GROUP = 32
# Shorter groups are formed only where longer ones do not fit.
SHORTEST_GROUP = 8
# Where groups hold fewer units, their sums take more than half a byte a unit.
ENOUGH_GROUPED = 12
# Smaller arrays are taken to be on one device, where the mesh is not known and no group
# fits otherwise.
SMALLEST_SPLIT = 2**18
# Over how many devices an axis may be split where the mesh is not known: `in_shardings`
# show only when the program is compiled.
USUAL_DEVICES = 32


def sum_one(marked: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sum of a bool array over `axes`: uint32."""
    return _sum_packed(marked.astype(jnp.uint32), axes, fields=1, may_cross=False)[0]


def sum_pair(one: jax.Array, other: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The sums of two bool arrays over `axes`, in one read: uint32 [2, ...]."""
    packed = one.astype(jnp.uint32) | (other.astype(jnp.uint32) << 16)
    may_cross = _may_cross_devices(packed)
    sums = [
        _sum_packed(part, axes, fields=2, may_cross=may_cross)
        for part in _even_parts(packed, axes)
    ]
    return functools.reduce(jnp.add, sums)


def _sum_packed(
    packed: jax.Array, axes: tuple[int, ...], *, fields: int, may_cross: bool
) -> jax.Array:
    """The sums over `axes` of each half of integers: uint32 [fields, ...].

    The halves are 0 or 1, and groups are short, so that no half overflows.
    """
    sums = packed
    if sums.size >= SMALLEST_GROUPED:
        sums = _sum_groups(sums, _groups(sums, axes, may_cross=may_cross))
    # Signed and unsigned in turns, or XLA would merge one sum with the next.
    sums = jax.lax.bitcast_convert_type(sums, jnp.int32)
    shifts = np.array([0, 16][:fields], np.int32).reshape(-1, *[1] * sums.ndim)
    unpacked = (jnp.expand_dims(sums, 0) >> shifts) & 0xFFFF
    axes = tuple(axis + 1 for axis in axes)
    if packed.size >= SMALLEST_GROUPED:
        groups = _groups(unpacked, axes, may_cross=False)
        unpacked = _sum_groups(unpacked, groups)
    unpacked = jax.lax.bitcast_convert_type(unpacked, jnp.uint32)
    return jnp.sum(unpacked, axes, dtype=jnp.uint32)


def _sum_groups(numbers: jax.Array, groups: dict[int, int]) -> jax.Array:
    """Sums so many neighbours along each of some axes."""
    shape: list[int] = []
    grouped: list[int] = []
    for axis, size in enumerate(numbers.shape):
        group = groups.get(axis, 1)
        shape += [size // group, group] if group > 1 else [size]
        grouped += [len(shape) - 1] if group > 1 else []
    return numbers.reshape(shape).sum(grouped, dtype=numbers.dtype)


def _groups(
    array: jax.Array, axes: tuple[int, ...], *, may_cross: bool
) -> dict[int, int]:
    """Which axes to sum in groups, and the size of each group.

    Units that are neighbours in memory lie along the last axis, so its groups may be
    long. Other axes are summed in groups only where that leaves too many sums.
    """
    groups: dict[int, int] = {}
    for axis in reversed(axes):
        if math.prod(groups.values()) >= ENOUGH_GROUPED:
            break
        longest = LONGEST_GROUP if axis == axes[-1] else SHORTEST_GROUP
        sizes = _group_sizes(array, axis, longest, may_cross)
        if sizes and not is_split(array, axis):
            groups[axis] = sizes[-1]
    return groups


def _group_sizes(
    array: jax.Array, axis: int, longest: int, may_cross: bool
) -> list[int]:
    """The sizes of groups that divide an axis and every device's part of it."""
    length = array.shape[axis]
    part = length // math.gcd(length, _most_devices(array))
    sizes = [size for size in range(2, longest + 1) if part % size == 0]
    if not sizes and may_cross:
        sizes = [size for size in range(2, longest + 1) if length % size == 0]
    return sizes


def _even_parts(array: jax.Array, axes: tuple[int, ...]) -> list[jax.Array]:
    """The array, or its parts along the last axis, if that allows no groups.

    Devices hold an axis in equal parts, so each of these is parted, not the axis.
    """
    if array.size < SMALLEST_GROUPED or not axes:
        return [array]
    axis = axes[-1]
    length = array.shape[axis]
    part = length // math.gcd(length, _most_devices(array))
    even = part - part % LONGEST_GROUP
    may_cross = _may_cross_devices(array)
    if _group_sizes(array, axis, LONGEST_GROUP, may_cross) or is_split(array, axis):
        return [array]
    if not even:
        return [array]
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    by_device = array.reshape(*before, length // part, part, *after)
    return [
        piece.reshape(*before, -1, *after)
        for piece in jnp.split(by_device, [even], axis=axis + 1)
    ]


def _most_devices(array: jax.Array) -> int:
    """Over how many devices an axis of an array may be split."""
    mesh = jax.typeof(array).sharding.mesh
    return USUAL_DEVICES if mesh.empty else mesh.size


def _may_cross_devices(array: jax.Array) -> bool:
    """Whether groups may all the same: in small arrays on no known mesh."""
    mesh = jax.typeof(array).sharding.mesh
    return mesh.empty and array.size < SMALLEST_SPLIT


def is_split(array: jax.Array, axis: int) -> bool:
    """Whether an axis is known to be split over devices: in explicit mode alone."""
    return jax.typeof(array).sharding.spec[axis] is not None
