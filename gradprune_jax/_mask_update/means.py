r"""Means of magnitudes in integers, so that they do not depend on any order.

A sum of floats depends on the order of summation, so on the layout, and its last bit
would move whole channels. So the mean of a block of $c$ weights is summed in integers:
with $2^e$ the power of two below the leaf's largest finite magnitude and F bits, F at
least 33,

$$
q_i = \lceil |w_i| \, 2^{F - 1 - e} \rceil, \qquad
\mathrm{score} = 2^{e - F + 1} \Big( \sum_{i=1}^{c} q_i \Big) / c,
$$

the sum exact and the quotient rounded down, to float32 (float64 for such weights, in 31
bits). Magnitudes are rounded up, so that a non-zero weight never scores zero. With
D-bit digits of $q_i$, where $c < 2^{32 - D}$, no sum of digits overflows 32 bits;
$1 + \lfloor 32 / D \rfloor$ digits keep the whole below $2^{64}$.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax._top_k import Count, key_dtype

LARGEST_UNIT = 2**31 - 1
SumUnits = Callable[[Callable[[jax.Array], jax.Array]], jax.Array]


def unit_totals(sum_units: SumUnits, most: int, top: jax.Array, dtype: Any) -> Count:
    """The sum of every unit of finite magnitudes, as an exact integer.

    Args:
      sum_units: sums a function of the bits of |w| over the weights of every unit; it
        is called for each digit.
      most: c, how many weights a unit has at most.
      top: the bits of the largest finite magnitude, to broadcast with weights and with
        units.
      dtype: the floating dtype of the bits.

    Returns:
      Integers of the units' shape.
    """
    if most > LARGEST_UNIT:
        raise ValueError(
            f"a block or channel has {most:,} weights; at most {LARGEST_UNIT:,} can be "
            "pooled."
        )
    bits, digits = _digits(most)
    top_exponent = _exponent(top, dtype)
    total = Count(jnp.uint32(0), jnp.uint32(0))
    for digit in range(digits):
        part = sum_units(
            functools.partial(
                _digit,
                top_exponent=top_exponent,
                dtype=dtype,
                digit=digit,
                digits=digits,
                bits=bits,
            )
        )
        total = total + _shifted(part, digit * bits)
    return total


def mean_bits(
    total: Count, most: int, sizes: jax.Array, top: jax.Array, dtype: Any
) -> jax.Array:
    """The mean of every unit, rounded down, as the bits of a float.

    Args:
      total: the sums of the units, as of `unit_totals`.
      most: as of `unit_totals`, and so are `top` and `dtype`.
      sizes: how many weights each unit has, uint32 that broadcast with the sums.
      top: the bits of the largest finite magnitude.
      dtype: the floating dtype of the bits.

    Returns:
      Unsigned integers of the units' shape.
    """
    bits, digits = _digits(most)
    quotient, exponent = leading_quotient(total, sizes)
    exponent = _exponent(top, dtype) + exponent - (digits * bits - 1)
    return jnp.where(
        (total.high | total.low) == 0, 0, _float_bits(quotient, exponent, dtype)
    )


def _digits(most: int) -> tuple[int, int]:
    """The bits of a digit, and how many digits a magnitude has."""
    bits = 32 - most.bit_length()
    return bits, 1 + 32 // bits


def _digit(
    keys: jax.Array,
    top_exponent: jax.Array,
    dtype: Any,
    digit: int,
    digits: int,
    bits: int,
) -> jax.Array:
    """One digit, the lowest is number 0, of magnitudes as integers rounded up.

    Bit `digits * bits - 1` of these integers stands for 2 to the largest exponent.
    """
    fraction_bits = jnp.finfo(dtype).nmant
    exponent = _exponent(keys, dtype)
    mantissa = keys & ((1 << fraction_bits) - 1)
    mantissa |= (keys >> fraction_bits != 0).astype(keys.dtype) << fraction_bits
    # In blocks of infinities an exponent may be larger than the top: they are not used.
    lowest = jnp.maximum(top_exponent - exponent, 0) + (
        fraction_bits + 1 - digits * bits
    )
    most = 8 * keys.dtype.itemsize - 1
    shift = lowest + digit * bits
    right = jnp.clip(shift, 0, most).astype(keys.dtype)
    left = jnp.clip(-shift, 0, most).astype(keys.dtype)
    number = ((mantissa >> right) << left) & ((1 << bits) - 1)
    if digit == 0:
        lost = mantissa & ((jnp.ones_like(right) << right) - 1)
        number += (lost != 0).astype(number.dtype)
    return number.astype(jnp.uint32)


def _exponent(keys: jax.Array, dtype: Any) -> jax.Array:
    """The exponents of magnitudes, from 1, which denormals share: int32."""
    exponent = (keys >> jnp.finfo(dtype).nmant).astype(jnp.int32)
    return jnp.maximum(exponent, 1)


def _float_bits(bits: jax.Array, exponent: jax.Array, dtype: Any) -> jax.Array:
    """The float of 32 leading bits and an exponent, rounded down but never to zero."""
    unsigned = key_dtype(dtype)
    fraction_bits = jnp.finfo(dtype).nmant
    wide = bits.astype(unsigned)
    if fraction_bits > 31:
        wide = wide << (fraction_bits - 31)
    else:
        wide = wide >> (31 - fraction_bits)
    denormal = jnp.clip(1 - exponent, 0, fraction_bits + 1).astype(unsigned)
    # The leading bit adds 1 to the exponent; denormals have none.
    raised = (jnp.maximum(exponent, 1) - 1).astype(unsigned) << fraction_bits
    return jnp.maximum(raised + (wide >> denormal), 1)


def _shifted(numbers: jax.Array, bits: int) -> Count:
    """uint32 numbers times 2^bits."""
    zero = jnp.zeros_like(numbers)
    if bits == 0:
        return Count(zero, numbers)
    if bits >= 32:
        return Count(numbers << (bits - 32), zero)
    return Count(numbers >> (32 - bits), numbers << bits)


def leading_quotient(
    numerator: Count, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""The leading bits of a quotient, and its exponent.

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
      >>> from gradprune_jax._top_k import Count
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
    """The number of zero bits before the first set bit of 64: uint32."""
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
    """Divides (rest 2^16 + digit) by a divisor: 16 bits of the quotient, and the rest.

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
