r"""Exact counts beyond 32 bits, with `jax_enable_x64` off.

A count of weights may pass $2^{32}$, and JAX has no 64-bit integers by default.
Here a count is two uint32 lanes, $high \cdot 2^{32} + low$. No float touches a
count: to float32 100,000,001 is 100,000,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_COUNT = 2**48


class Count(NamedTuple):
    """Non-negative integers below 2^64, as two uint32 arrays of one shape."""

    high: jax.Array
    low: jax.Array


def as_count(numbers: Sequence[int]) -> Count:
    """Python integers as a vector of counts."""
    return Count(
        jnp.asarray(np.array([n >> 32 for n in numbers], np.uint32)),
        jnp.asarray(np.array([n & 0xFFFFFFFF for n in numbers], np.uint32)),
    )


def as_integer(count: Count) -> Any:
    """A concrete count as Python integers, for people and tests."""
    high, low = np.asarray(count.high, object), np.asarray(count.low, object)
    return high * 2**32 + low


def from_uint32(numbers: jax.Array) -> Count:
    """uint32 numbers as counts."""
    return Count(jnp.zeros_like(numbers), numbers)


def as_float(count: Count) -> jax.Array:
    """The float32 nearest to a count, or next to it; zero only for zero."""
    return jnp.float32(2**32) * count.high.astype(jnp.float32) + count.low.astype(
        jnp.float32
    )


def from_float(numbers: jax.Array) -> Count:
    """The whole part of non-negative float32 numbers below 2^64."""
    high = jnp.floor(numbers * 2.0**-32)
    low = numbers - high * 2.0**32  # exact: a multiple of the numbers' last bit
    return Count(high.astype(jnp.uint32), low.astype(jnp.uint32))


def add(a: Count, b: Count) -> Count:
    """a + b."""
    low = a.low + b.low
    carry = (low < b.low).astype(jnp.uint32)
    return Count(a.high + b.high + carry, low)


def subtract(a: Count, b: Count) -> Count:
    """a - b, for b <= a."""
    borrow = (a.low < b.low).astype(jnp.uint32)
    return Count(a.high - b.high - borrow, a.low - b.low)


def at_least(a: Count, b: Count) -> jax.Array:
    """a >= b."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def equal(a: Count, b: Count) -> jax.Array:
    """a == b."""
    return (a.high == b.high) & (a.low == b.low)


def select(condition: jax.Array, a: Count, b: Count) -> Count:
    """a where the condition holds, else b."""
    return Count(
        jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low)
    )


def maximum(a: Count, b: Count) -> Count:
    """The larger of a and b."""
    return select(at_least(a, b), a, b)


def minimum(a: Count, b: Count) -> Count:
    """The smaller of a and b."""
    return select(at_least(a, b), b, a)


def cumulative_sum(numbers: jax.Array) -> Count:
    """The running sums of a uint32 array along its last axis, below 2^16 numbers."""
    halves = jnp.cumsum(
        jnp.stack([numbers >> 16, numbers & 0xFFFF]), axis=-1, dtype=jnp.uint32
    )
    upper, lower = halves[0], halves[1]
    return add(Count(upper >> 16, upper << 16), Count(jnp.zeros_like(lower), lower))


def total(count: Count) -> Count:
    """The sum of a vector of counts, as a vector of one: below 2^16 counts."""
    high = jnp.sum(count.high, dtype=jnp.uint32).reshape(1)
    low = cumulative_sum(count.low)
    return add(Count(high, jnp.zeros_like(high)), Count(low.high[-1:], low.low[-1:]))


def kept_count(sizes: Sequence[int], sparsity: jax.Array) -> Count:
    r"""How many of each group's weights a sparsity keeps.

    $$
    n - \mathrm{round}(s n)
    $$

    the product exact, halves to even; at least one, unless $s = 1$.

    Args:
      sizes: the number of weights of each group, each at most 2^48.
      sparsity: float32 scalar, or one value a group.

    Returns:
      The kept counts, of shape `[len(sizes)]`.

    Examples:
      >>> print(as_integer(kept_count([10, 100_000_001], jnp.float32(0.9))))
      [1 10000002]
    """
    total = as_count(sizes)
    one = jnp.asarray(np.array([min(n, 1) for n in sizes], np.uint32))
    least = jnp.where(sparsity >= 1, jnp.zeros_like(one), one)
    kept = subtract(total, rounded_product(total, sparsity))
    return maximum(kept, from_uint32(least))


def rounded_product(counts: Count, fraction: jax.Array) -> Count:
    """The exact product with a float32 in [0, 1], rounded, halves to even."""
    floor, half, sticky = _multiply(counts, fraction)
    round_up = half & (sticky | (floor.low & 1).astype(bool))
    return add(floor, _from_bool(round_up))


def ceiling_count(sizes: Sequence[int], fraction: jax.Array) -> Count:
    r"""At least this fraction of each group: $\lceil d n \rceil$.

    With d the smallest number that rounds to the float: the float nearest to 0.1 is
    larger than 0.1, and 0.1 of 1,000 is 100, not 101.

    Args:
      sizes: the number of weights of each group, each at most 2^48.
      fraction: float32 scalar.

    Returns:
      The counts, of shape `[len(sizes)]`; all of a group if the fraction is 1.
    """
    total = as_count(sizes)
    floor, half, sticky = _multiply(total, fraction, half_ulp_below=True)
    least = add(floor, _from_bool(half | sticky))
    return select(fraction >= 1, total, least)


def float32_parts(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Integers m < 2^24 and e >= 1 of non-negative floats m 2^(e - 150): uint32."""
    bits = jax.lax.bitcast_convert_type(numbers.astype(jnp.float32), jnp.uint32)
    exponent = bits >> 23
    mantissa = (bits & 0x7FFFFF) | jnp.where(exponent > 0, jnp.uint32(1 << 23), 0)
    return mantissa, jnp.maximum(exponent, 1)


def _multiply(
    counts: Count, fraction: jax.Array, *, half_ulp_below: bool = False
) -> tuple[Count, jax.Array, jax.Array]:
    """The exact n * f for f in [0, 1]: its floor, the bit after it, and any bit after.

    A float32 is m * 2^-shift with m <= 2^24, so the product is an integer of at most 72
    bits, shifted right by 23 or more. It is formed in three lanes of 32 bits from
    partial products of 16 and 13 bits. With `half_ulp_below`, f is the lower end of the
    interval that rounds to the float: 2 m - 1 over twice the power.
    """
    # NaN and values outside [0, 1] can only come from tracers; they prune nothing or
    # everything, where the bits would be nonsense.
    fraction = jnp.where(fraction > 0, jnp.minimum(fraction, 1.0), 0.0)
    mantissa, exponent = float32_parts(fraction)
    shift = 150 - exponent
    if half_ulp_below:
        mantissa = jnp.where(mantissa > 0, 2 * mantissa - 1, 0)
        shift += 1

    lanes = [jnp.zeros_like(counts.low)] * 3
    digits = (counts.low & 0xFFFF, counts.low >> 16, counts.high)
    for i, digit in enumerate(digits):
        for j in range(2):
            partial = digit * ((mantissa >> (13 * j)) & 0x1FFF)
            lanes = _add_shifted(lanes, partial, 16 * i + 13 * j)

    # One bit less, to see the bit below the point; beyond 95 nothing is left.
    shift = jnp.minimum(shift - 1, 95)
    sticky = jnp.zeros(counts.low.shape, bool)
    for power in (64, 32, 16, 8, 4, 2, 1):
        shifted, lost = _shift_right(lanes, power)
        chosen = (shift & power) != 0
        lanes = [
            jnp.where(chosen, new, old) for new, old in zip(shifted, lanes, strict=True)
        ]
        sticky |= chosen & lost
    low, high, _ = lanes
    half = (low & 1).astype(bool)
    return Count(high >> 1, (high << 31) | (low >> 1)), half, sticky


def _add_shifted(lanes: list[jax.Array], number: Any, offset: int) -> list[jax.Array]:
    """lanes + number * 2^offset; lanes go from the lowest to the highest."""
    lane, bit = divmod(offset, 32)
    parts = [number << bit] + ([number >> (32 - bit)] if bit else [])
    lanes = list(lanes)
    for position, part in enumerate(parts, start=lane):
        for above in range(position, len(lanes)):
            lanes[above] = lanes[above] + part
            part = (lanes[above] < part).astype(jnp.uint32)
    return lanes


def _shift_right(
    lanes: list[jax.Array], power: int
) -> tuple[list[jax.Array], jax.Array]:
    """lanes >> power, for a power of two below 96, and whether a set bit was lost."""
    whole, bit = divmod(power, 32)
    zero = jnp.zeros_like(lanes[0])
    lost = jnp.zeros(zero.shape, bool)
    for lane in lanes[:whole]:
        lost |= lane != 0
    lanes = [*lanes[whole:], *[zero] * whole]
    if bit:
        lost |= (lanes[0] & ((1 << bit) - 1)) != 0
        lanes = [
            (low >> bit) | (high << (32 - bit))
            for low, high in zip(lanes, [*lanes[1:], zero], strict=True)
        ]
    return lanes, lost


def _from_bool(condition: jax.Array) -> Count:
    """1 where the condition holds, else 0."""
    low = condition.astype(jnp.uint32)
    return Count(jnp.zeros_like(low), low)
