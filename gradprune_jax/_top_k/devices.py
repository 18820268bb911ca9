"""Devices: how an axis may be split over them, as far as an array's type tells."""

from __future__ import annotations

import math

import jax

# Smaller arrays are assumed to be on one device, where the mesh is not known and no
# run fits otherwise.
SMALLEST_SPLIT = 2**18
# Over how many devices an axis may be split where the mesh is not known, if there are
# so many: `in_shardings` are known only when the program is compiled.
USUAL_DEVICES = 16


def part_of_device(array: jax.Array, axis: int) -> int:
    """Return how much of an axis each device holds, if all devices split it."""
    length = array.shape[axis]
    return length // math.gcd(length, most_devices(array))


def most_devices(array: jax.Array) -> int:
    """Return over how many devices an array may be split, as far as is known."""
    mesh = jax.typeof(array).sharding.mesh
    return min(jax.device_count(), USUAL_DEVICES) if mesh.empty else mesh.size


def is_on_one_device(array: jax.Array) -> bool:
    """Whether an array is whole, or is assumed to be: small and on no known mesh."""
    is_small = jax.typeof(array).sharding.mesh.empty and array.size < SMALLEST_SPLIT
    return is_small or most_devices(array) == 1


def is_split(array: jax.Array, axis: int) -> bool:
    """Whether an axis is known to be split over devices, in explicit mode alone."""
    return jax.typeof(array).sharding.spec[axis] is not None
