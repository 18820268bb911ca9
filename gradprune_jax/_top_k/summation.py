"""Summation: how many of a leaf's units are marked, in little memory and time.

XLA fuses a short sum with the operations that make its operand. On CPU it takes a sum
over more than 32 neighbours apart, and writes the operand to memory first: four bytes
for every bool. But it takes a sum over several axes for short as long as each of them
is. So an axis is split into several of at most 32 each, and one sum goes over all of
them: a leaf is read once, and a few numbers are written. Two markings are summed at
once, in the halves of an integer.

Such a run of units must not reach from one device to the next, or data would be moved.
Devices hold an axis in equal parts. The type of an array says how many, if it was put
on a mesh before it was traced.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.devices import (
    is_on_one_device,
    is_split,
    most_devices,
    part_of_device,
)

# A sum or a maximum over some axes.
Reduction = Callable[[jax.Array, tuple[int, ...]], jax.Array]

# Smaller arrays are summed as they are.
SMALLEST_IN_RUNS = 2**12
# How many neighbours XLA sums at once, without writing them to memory before.
LONGEST_RUN = 32
# The same across other axes, whose units are not neighbours in memory.
LONGEST_ACROSS = 8
# So many runs of each of several arrays are added up together.
FEW_RUNS = 2**8
# How many units are summed at once, so that half an integer holds their number.
MOST_AT_ONCE = 2**15
# Where fewer are summed at once, their sums take more than a third of a byte a unit.
ENOUGH_AT_ONCE = 12


def sum_one(marked: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum a bool array over `axes`: uint32."""
    return _total(marked.astype(jnp.uint32), axes, fields=1)[0]


def sum_pair(one: jax.Array, other: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum two bool arrays over `axes`, in one read: uint32 [2, ...]."""
    return _total(_packed(one, other), axes, fields=2)


def sum_pair_in_runs(
    one: jax.Array, other: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
    """Sum runs of two bool arrays along `axes`, which `add_runs` adds up.

    Returns:
      uint32 [slices, runs]: two sums in the halves of each integer, of the slices along
      all other axes.
    """
    pieces = []
    for sums, own_axes, _ in _sums_of_runs(_packed(one, other), axes):
        last = jnp.moveaxis(sums, own_axes, range(-len(own_axes), 0))
        pieces.append(last.reshape(math.prod(last.shape[: -len(own_axes)]), -1))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


def add_runs(in_runs: Sequence[jax.Array]) -> jax.Array:
    """Add up the runs of every slice of several arrays: uint32 [2, all slices].

    Those with few runs are added up together: XLA takes as long to compile a sum of a
    few numbers as one of many.

    Args:
      in_runs: of each array uint32 [slices, runs], as from `sum_pair_in_runs`.
    """
    few = [sums for sums in in_runs if sums.shape[1] <= FEW_RUNS]
    ends = np.cumsum([len(sums) for sums in few])
    totals = iter(jnp.split(_add_few_runs(few), ends[:-1], axis=1) if few else [])
    return jnp.concatenate(
        [
            next(totals) if sums.shape[1] <= FEW_RUNS else _add_up(sums, (1,), True)
            for sums in in_runs
        ],
        axis=1,
    )


def _add_few_runs(in_runs: Sequence[jax.Array]) -> jax.Array:
    """Add up few runs of every slice of several arrays, by one sum."""
    slices = [len(sums) for sums in in_runs]
    lengths = np.repeat([sums.shape[1] for sums in in_runs], slices)
    starts = np.cumsum(lengths) - lengths
    # Along two axes, or XLA would cut a sum over more than LONGEST_RUN.
    place = np.arange(FEW_RUNS).reshape(-1, LONGEST_RUN)
    place = place[: -(-lengths.max() // LONGEST_RUN)]
    numbers = jnp.concatenate([sums.ravel() for sums in in_runs])
    own = jnp.take(numbers, jnp.asarray(starts.reshape(-1, 1, 1) + place), mode="clip")
    own = jnp.where(jnp.asarray(place < lengths.reshape(-1, 1, 1)), own, 0)
    return jnp.sum(_unpacked(own, fields=2), (2, 3), dtype=jnp.uint32)


def _packed(one: jax.Array, other: jax.Array) -> jax.Array:
    """Two bool arrays as the lower and the upper halves of integers."""
    return one.astype(jnp.uint32) | (other.astype(jnp.uint32) << 16)


def _total(packed: jax.Array, axes: tuple[int, ...], fields: int) -> jax.Array:
    """Sum each half of integers over `axes`: uint32 [fields, ...].

    Args:
      packed: uint32, the halves 0 or 1.
      axes: the axes to sum over, ascending.
      fields: 1 for the lower halves alone, or 2.
    """
    if packed.size < SMALLEST_IN_RUNS:
        return jnp.sum(_unpacked(packed, fields), _behind(axes), dtype=jnp.uint32)
    pieces = _sums_of_runs(packed, axes)
    return functools.reduce(jnp.add, [_add_up(*piece, fields) for piece in pieces])


class _RunSums(NamedTuple):
    """Sums of runs of an array.

    Attributes:
      sums: uint32, two sums in the halves of each integer.
      axes: the axes along which the runs lie, ascending.
      is_whole: whether no device splits the array; else its type says so.
    """

    sums: jax.Array
    axes: tuple[int, ...]
    is_whole: bool


def _sums_of_runs(
    packed: jax.Array, axes: tuple[int, ...], is_whole: bool = False
) -> list[_RunSums]:
    """Sum integers over runs of `axes`, so few at once that no half overflows.

    Args:
      packed: uint32, the halves 0 or 1.
      axes: the axes to sum over, ascending.
      is_whole: as of `_RunSums`.

    Returns:
      The sums of the array, or of several pieces of it where no runs fit the whole.
    """
    runs = _runs(packed, axes, is_whole)
    is_flattened = len(axes) == packed.ndim and is_on_one_device(packed)
    # What is known to be whole costs nothing to make flat.
    enough = LONGEST_RUN if most_devices(packed) == 1 else ENOUGH_AT_ONCE
    if math.prod(length for run in runs.values() for length in run) < enough:
        if is_flattened:
            packed, axes, is_whole = packed.ravel(), (0,), True
        parts = _even_parts(packed, axes[-1], is_whole) if axes else [packed]
        if len(parts) > 1:
            pieces = [_sums_of_runs(part, axes, is_whole) for part in parts]
            return [each for own in pieces for each in own]
        runs = _runs(packed, axes, is_whole)
    return [_RunSums(reduce_runs(add_up, packed, runs), axes, is_whole)]


def _add_up(
    sums: jax.Array, axes: tuple[int, ...], is_whole: bool, fields: int = 2
) -> jax.Array:
    """Add up the runs along `axes`: uint32 [fields, ...]."""
    # Signed and unsigned in turns, or XLA would merge one sum with the next.
    sums = jax.lax.bitcast_convert_type(sums, jnp.int32)
    sums = _unpacked(sums, fields)
    if sums.size >= SMALLEST_IN_RUNS:
        runs = _runs(sums, _behind(axes), is_whole)
        sums = reduce_runs(add_up, sums, runs)
    sums = jax.lax.bitcast_convert_type(sums, jnp.uint32)
    return jnp.sum(sums, _behind(axes), dtype=jnp.uint32)


def _unpacked(packed: jax.Array, fields: int) -> jax.Array:
    """The halves of integers: [fields, ...] of their dtype."""
    shifts = np.array([0, 16][:fields], packed.dtype)
    shifts = shifts.reshape(-1, *[1] * packed.ndim)
    return (jnp.expand_dims(packed, 0) >> shifts) & 0xFFFF


def _behind(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The same axes after one more in front."""
    return tuple(axis + 1 for axis in axes)


def reduce_runs(
    reduce: Reduction, numbers: jax.Array, runs: dict[int, list[int]]
) -> jax.Array:
    """Reduce runs of neighbours to one number each, by one reduction.

    Args:
      reduce: the reduction.
      numbers: the array.
      runs: for some axes, the lengths of runs and of runs of them, the innermost first;
        their product divides the axis.
    """
    reduced: list[int] = []
    for axis in sorted(runs, reverse=True):
        for length in runs[axis]:
            numbers = split_axis(numbers, axis, length)
            reduced = [axis + 1, *(other + 1 for other in reduced)]
    return reduce(numbers, tuple(reduced))


def split_axis(array: jax.Array, axis: int, size: int) -> jax.Array:
    """Split an axis in two: groups, and the `size` neighbours in each.

    One axis at a time, because explicit sharding mode allows no more.
    """
    groups = array.shape[axis] // size
    return array.reshape(*array.shape[:axis], groups, size, *array.shape[axis + 1 :])


def add_up(numbers: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over axes in the integers' own dtype, which JAX might widen."""
    return jnp.sum(numbers, axes, dtype=numbers.dtype)


def _runs(
    array: jax.Array, axes: tuple[int, ...], is_whole: bool
) -> dict[int, list[int]]:
    """Choose the runs that are summed at once along each axis, the innermost first.

    Units that are neighbours in memory lie along the last axis, which comes first.
    """
    runs: dict[int, list[int]] = {}
    at_once, longest = 1, LONGEST_RUN
    for axis in reversed(axes):
        if longest < LONGEST_RUN and at_once >= ENOUGH_AT_ONCE:
            break
        own: list[int] = []
        left = array.shape[axis] if is_whole else part_of_device(array, axis)
        if is_whole or not is_split(array, axis):
            while sizes := divisors(left, min(longest, MOST_AT_ONCE // at_once)):
                own.append(sizes[-1])
                at_once *= sizes[-1]
                left //= sizes[-1]
        runs[axis] = own
        if math.prod(own) < array.shape[axis]:  # what comes next are no neighbours
            longest = LONGEST_ACROSS
    # XLA would put together the runs of a whole axis again, if no other axis is cut.
    lengths = {axis: math.prod(own) for axis, own in runs.items()}
    if all(length in (1, array.shape[axis]) for axis, length in lengths.items()):
        longest_axis = max(runs, key=lambda axis: lengths[axis])
        if lengths[longest_axis] > LONGEST_RUN:
            runs[longest_axis].pop()
    return runs


def run_sizes(array: jax.Array, axis: int) -> list[int]:
    """List the lengths of runs that divide an axis and every device's part of it."""
    if is_split(array, axis):
        return []
    return divisors(part_of_device(array, axis), LONGEST_RUN)


def divisors(number: int, most: int) -> list[int]:
    """The divisors of a number from 2 to `most`, ascending."""
    return [size for size in range(2, most + 1) if number % size == 0]


def _even_parts(array: jax.Array, axis: int, is_whole: bool) -> list[jax.Array]:
    """Split an array along an axis in two, of which the first allows long runs.

    Each device's part of the axis is split, so that no data moves.
    """
    part = array.shape[axis] if is_whole else part_of_device(array, axis)
    even = part - part % (LONGEST_RUN**2 if part > LONGEST_RUN**2 else LONGEST_RUN)
    if even in (0, part) or (not is_whole and is_split(array, axis)):
        return [array]
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    by_device = array.reshape(*before, -1, part, *after)
    return [
        piece.reshape(*before, -1, *after)
        for piece in jnp.split(by_device, [even], axis=axis + 1)
    ]
