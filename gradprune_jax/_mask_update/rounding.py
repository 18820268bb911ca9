r"""Rounding: how many of n units a fraction is, exactly.

The product of a float32 and a count of 48 bits has 72 bits. Floats do not hold it: in
float32, 0.9 of 100,000,001 is wrong by two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradprune_jax._top_k import Count, array_namespace, maximum, select


def kept_count(sizes: Sequence[int], sparsity: Any) -> Count:
    r"""How many of each group's units a sparsity keeps.

    $$
    n - \mathrm{round}(s n)
    $$

    the product exact, halves to even; at least one, unless $s = 1$.

    Args:
      sizes: the number of units of each group, each at most 2^48.
      sparsity: float32 scalar, or one value a group; traced or not.

    Returns:
      The kept counts, of shape `[len(sizes)]`.

    Examples:
      >>> print(kept_count([10, 100_000_001], np.float32(0.9)).integers())
      [1 10000002]
    """
    every = Count.of(sizes)
    one = np.array([min(n, 1) for n in sizes], np.uint32)
    xp = array_namespace(sparsity)
    least = xp.where(sparsity >= 1, xp.zeros_like(one), one)
    kept = every - rounded_product(every, sparsity)
    return maximum(kept, Count.of_uint32(least))


def rounded_product(counts: Count, fraction: Any) -> Count:
    """The exact product with a float32 in [0, 1], rounded, halves to even."""
    floor, half, sticky = _multiply(counts, fraction)
    round_up = half & (sticky | (floor.low & 1).astype(bool))
    return floor + Count.of_uint32(round_up.astype(np.uint32))


def ceiling_count(sizes: Sequence[int], fraction: Any) -> Count:
    r"""At least this fraction of each group: $\lceil d n \rceil$.

    With d the smallest number that rounds to the float: the float nearest to 0.1 is
    larger than 0.1, and 0.1 of 1,000 is 100, not 101.

    Args:
      sizes: the number of units of each group, each at most 2^48.
      fraction: float32 scalar.

    Returns:
      The counts, of shape `[len(sizes)]`; all of a group if the fraction is 1.
    """
    every = Count.of(sizes)
    floor, half, sticky = _multiply(every, fraction, half_ulp_below=True)
    least = floor + Count.of_uint32((half | sticky).astype(np.uint32))
    return select(fraction >= 1, every, least)


def to_multiples(
    kept: Count, sizes: Sequence[int], multiple: int, least: Count | None = None
) -> Count:
    """Counts rounded to the nearest multiple, up from the middle.

    At least one multiple is kept, unless nothing is, and at most what there is. Nothing
    is rounded where all is kept, or where there is less than one multiple.

    Args:
      kept: the counts, below 2^32.
      sizes: how many there are of each.
      multiple: of what number.
      least: what is to be kept in any case; None for nothing.

    Returns:
      The counts.

    Examples:
      >>> print(to_multiples(Count.of([9, 12, 3, 15]), [16, 16, 5, 15], 8).integers())
      [8 16 5 15]
    """
    if multiple == 1:
        return kept
    xp = array_namespace(kept.low)
    every = np.array(sizes, np.uint32)
    most = every // np.uint32(multiple) * np.uint32(multiple)
    rounded = (kept.low + np.uint32(multiple // 2)) // multiple * multiple
    rounded = xp.clip(rounded, np.uint32(multiple), most)
    if least is not None:
        too_few = rounded < least.low
        rounded = xp.where(too_few, xp.minimum(rounded + multiple, every), rounded)
    is_whole = (kept.low >= every) | (every < multiple)
    rounded = xp.where(is_whole, every, rounded)
    return Count.of_uint32(xp.where(kept.low == 0, kept.low, rounded))


def _float32_parts(numbers: Any) -> tuple[Any, Any]:
    """Integers m < 2^24 and e >= 1 of non-negative floats m 2^(e - 150): uint32."""
    xp = array_namespace(numbers)
    bits = xp.asarray(numbers).astype(np.float32).view(np.uint32)
    exponent = bits >> 23
    leading = xp.where(exponent > 0, np.uint32(1 << 23), np.uint32(0))
    return (bits & 0x7FFFFF) | leading, xp.maximum(exponent, np.uint32(1))


def _multiply(
    counts: Count, fraction: Any, *, half_ulp_below: bool = False
) -> tuple[Count, Any, Any]:
    """The exact n * f for f in [0, 1]: its floor, the bit after it, and any bit after.

    A float32 is m * 2^-shift with m <= 2^24, so the product is an integer of at most 72
    bits, shifted right by 23 or more. It is formed in three lanes of 32 bits from
    partial products of 16 and 13 bits. With `half_ulp_below`, f is the lower end of the
    interval that rounds to the float: 2 m - 1 over twice the power.
    """
    xp = array_namespace(counts.low, fraction)
    # NaN and values outside [0, 1] can only come from tracers; they prune nothing or
    # everything, where the bits would be nonsense.
    fraction = xp.where(fraction > 0, xp.minimum(fraction, 1.0), 0.0)
    mantissa, exponent = _float32_parts(fraction)
    shift = 150 - exponent
    if half_ulp_below:
        mantissa = 2 * mantissa - (mantissa > 0).astype(np.uint32)
        shift = shift + 1

    lanes = [xp.zeros_like(counts.low)] * 3
    digits = (counts.low & 0xFFFF, counts.low >> 16, counts.high)
    for i, digit in enumerate(digits):
        for j in range(2):
            partial = digit * ((mantissa >> (13 * j)) & 0x1FFF)
            lanes = _add_shifted(lanes, partial, 16 * i + 13 * j)

    # One bit less, to see the bit below the point; beyond 95 nothing is left.
    shift = xp.minimum(shift - 1, np.uint32(95))
    sticky = xp.zeros(counts.low.shape, bool)
    for power in (64, 32, 16, 8, 4, 2, 1):
        shifted, lost = _shift_right(lanes, power)
        chosen = (shift & power) != 0
        lanes = [
            xp.where(chosen, new, old) for new, old in zip(shifted, lanes, strict=True)
        ]
        sticky = sticky | (chosen & lost)
    low, high, _ = lanes
    half = (low & 1).astype(bool)
    return Count(high >> 1, (high << 31) | (low >> 1)), half, sticky


def _add_shifted(lanes: list[Any], number: Any, offset: int) -> list[Any]:
    """lanes + number * 2^offset; lanes go from the lowest to the highest."""
    lane, bit = divmod(offset, 32)
    parts = [number << bit] + ([number >> (32 - bit)] if bit else [])
    lanes = list(lanes)
    for position, part in enumerate(parts, start=lane):
        for above in range(position, len(lanes)):
            lanes[above] = lanes[above] + part
            part = (lanes[above] < part).astype(np.uint32)
    return lanes


def _shift_right(lanes: list[Any], power: int) -> tuple[list[Any], Any]:
    """lanes >> power, for a power of two below 96, and whether a set bit was lost."""
    whole, bit = divmod(power, 32)
    lost = lanes[0] < 0  # nowhere
    zero = lost.astype(np.uint32)
    for lane in lanes[:whole]:
        lost = lost | (lane != 0)
    lanes = [*lanes[whole:], *[zero] * whole]
    if bit:
        lost = lost | ((lanes[0] & ((1 << bit) - 1)) != 0)
        lanes = [
            (low >> bit) | (high << (32 - bit))
            for low, high in zip(lanes, [*lanes[1:], zero], strict=True)
        ]
    return lanes, lost
