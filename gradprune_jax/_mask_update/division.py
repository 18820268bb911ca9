"""Division of exact counts, in the integers of 32 bits that every device has."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gradprune_jax._top_k.counts import Count


def leading_quotient(
    numerator: Count, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The first bits of a quotient, and where they stand.

    $$
    n / d = (1.b_1 b_2 \dots)_2 \cdot 2^e
    $$

    rounded down after 30 bits: equal quotients give equal results, and larger ones no
    smaller results.

    Args:
      numerator: n, counts of any shape.
      divisor: d, positive uint32 that broadcast with them.

    Returns:
      The bits, uint32 with bit 31 set, or 0 for a quotient of 0; and e, int32.

    Examples:
      >>> from gradprune_jax._top_k.counts import Count
      >>> bits, e = leading_quotient(Count.of([10]), jnp.uint32(4))
      >>> float(bits[0] * 2.0**-31 * 2.0 ** e[0])
      2.5

    References:
      Warren, Hacker's Delight, 2nd edition, 2012, section 9-4.
    """
    zeros_before = _leading_zeros(numerator)
    divisor_zeros = jax.lax.clz(divisor)
    divisor = divisor << divisor_zeros
    shifted = _shift_left(numerator, jnp.minimum(zeros_before, 63))
    high, low = shifted.high, shifted.low
    # Half of it, so that its upper half is below the divisor.
    high, low = high >> 1, (low >> 1) | (high << 31)
    first, rest = _divide_digit(high, low >> 16, divisor)
    second, _ = _divide_digit(rest, low & 0xFFFF, divisor)
    quotient = (first << 16) | second  # with bit 31 or bit 30 set
    below_one = (quotient >> 31) == 0
    bits = jnp.where(below_one, quotient << 1, quotient & ~jnp.uint32(1))
    exponent = 32 - zeros_before.astype(jnp.int32) + divisor_zeros.astype(jnp.int32)
    return bits, exponent - below_one.astype(jnp.int32)


def _leading_zeros(count: Count) -> jax.Array:
    """How many of 64 bits stand before the first that is set: uint32."""
    return jnp.where(
        count.high != 0, jax.lax.clz(count.high), 32 + jax.lax.clz(count.low)
    )


def _shift_left(count: Count, bits: jax.Array) -> Count:
    """count << bits, for up to 63 bits."""
    within = bits & 31
    high = (count.high << within) | ((count.low >> 1) >> (31 - within))
    low = count.low << within
    by_a_lane = bits >= 32
    return Count(
        jnp.where(by_a_lane, low, high), jnp.where(by_a_lane, jnp.zeros_like(low), low)
    )


def _divide_digit(
    rest: jax.Array, digit: jax.Array, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The next 16 bits of a quotient, and the rest: (rest 2^16 + digit) / divisor.

    The rest is below the divisor, whose bit 31 is set. So the quotient by its upper
    half alone is at most 2 too large.
    """
    upper, lower = divisor >> 16, divisor & 0xFFFF
    quotient = rest // upper
    left = rest - quotient * upper
    for _ in range(2):
        too_large = (left <= 0xFFFF) & (
            (quotient > 0xFFFF) | (quotient * lower > ((left << 16) | digit))
        )
        quotient = jnp.where(too_large, quotient - 1, quotient)
        left = jnp.where(too_large, left + upper, left)
    return quotient, (rest << 16) + digit - quotient * divisor
