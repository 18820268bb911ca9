r"""Exact counts beyond 32 bits, with `jax_enable_x64` off.

A count of weights may pass $2^{32}$, and JAX has no 64-bit integers by default. Here a
count is two uint32 arrays, $high \cdot 2^{32} + low$. Counts are never rounded to
floats: the float32 nearest to 100,000,001 is 100,000,000.

The arrays are JAX's or NumPy's. So a plan, which needs no device, is made by the same
arithmetic as a mask update.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_COUNT = 2**48


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Count:
    """Integers in [0, 2^64), as two uint32 arrays of the same shape.

    Examples:
      >>> sums = Count.of([7, 2**32]) + Count.of([1, 2**32])
      >>> print(sums.integers())
      [8 8589934592]
    """

    high: Any
    low: Any

    @classmethod
    def of(cls, numbers: int | Sequence[int]) -> Count:
        """Make counts of Python integers: a scalar, or a vector."""
        exact = np.asarray(numbers, object)
        return cls(
            np.asarray(exact >> 32, np.uint32), np.asarray(exact & 2**32 - 1, np.uint32)
        )

    @classmethod
    def of_uint32(cls, numbers: Any) -> Count:
        """Make counts of uint32 numbers."""
        return cls(array_namespace(numbers).zeros_like(numbers), numbers)

    @classmethod
    def of_float(cls, numbers: jax.Array) -> Count:
        """Round down non-negative float32 numbers below 2^64."""
        high = jnp.floor(numbers * 2.0**-32)
        low = numbers - high * 2.0**32  # exact: a multiple of the numbers' last bit
        return cls(high.astype(jnp.uint32), low.astype(jnp.uint32))

    def integers(self) -> Any:
        """Return concrete counts as a Python integer, or a NumPy array of them."""
        high, low = np.asarray(self.high, object), np.asarray(self.low, object)
        return high * 2**32 + low

    def as_float(self) -> jax.Array:
        """The float32 nearest to each count, or next to it; zero only for zero."""
        high, low = (jnp.asarray(half, jnp.float32) for half in (self.high, self.low))
        return jnp.float32(2**32) * high + low

    def __add__(self, other: Count) -> Count:
        low = self.low + other.low
        carry = (low < other.low).astype(np.uint32)
        return Count(self.high + other.high + carry, low)

    def __sub__(self, other: Count) -> Count:
        """The difference, for `other <= self`."""
        borrow = (self.low < other.low).astype(np.uint32)
        return Count(self.high - other.high - borrow, self.low - other.low)

    def __ge__(self, other: Count) -> Any:
        is_equal = self.high == other.high
        return (self.high > other.high) | (is_equal & (self.low >= other.low))

    def equals(self, other: Count) -> Any:
        """Return where two counts are equal, bool."""
        return (self.high == other.high) & (self.low == other.low)


def select(condition: Any, a: Count, b: Count) -> Count:
    """Return the count `a` where the condition holds, else `b`."""
    xp = array_namespace(condition, a.high, a.low, b.high, b.low)
    return Count(xp.where(condition, a.high, b.high), xp.where(condition, a.low, b.low))


def maximum(a: Count, b: Count) -> Count:
    """Return the larger of two counts."""
    return select(a >= b, a, b)


def minimum(a: Count, b: Count) -> Count:
    """Return the smaller of two counts."""
    return select(a >= b, b, a)


def cumulative_sum(numbers: Any) -> Count:
    """Return running sums of less than 2^16 uint32 numbers along the last axis."""
    xp = array_namespace(numbers)
    halves = xp.cumsum(
        xp.stack([numbers >> 16, numbers & 0xFFFF]), axis=-1, dtype=np.uint32
    )
    upper, lower = halves[0], halves[1]
    return Count(upper >> 16, upper << 16) + Count.of_uint32(lower)


def total(counts: Count) -> Count:
    """Add up counts along the last axis, which is kept.

    NumPy's counts may be any number of them, those of JAX less than 2^16.
    """
    if array_namespace(counts.high, counts.low) is np:
        return Count.of(counts.integers().sum(axis=-1, keepdims=True))
    high = counts.high.sum(axis=-1, keepdims=True, dtype=np.uint32)
    low = cumulative_sum(counts.low)
    zero = array_namespace(high).zeros_like(high)
    return Count(high, zero) + Count(low.high[..., -1:], low.low[..., -1:])


def count_true(flags: jax.Array) -> Count:
    r"""Count the flags that are True, exact for up to $2^{40}$ flags.

    A sum in uint32 wraps at $2^{32}$. So the first sum is along some axes only, which
    hold fewer flags together. Its results are then summed in two parts: their lower
    bits and their upper bits.
    """
    axes: list[int] = []
    length = 1
    for axis in sorted(range(flags.ndim), key=lambda axis: -flags.shape[axis]):
        if length * flags.shape[axis] < 2**32:
            axes.append(axis)
            length *= flags.shape[axis]
    partial = jnp.sum(flags, axis=tuple(axes), dtype=jnp.uint32)
    if not partial.ndim:
        return Count.of_uint32(partial)
    bits = min(16, 32 - (partial.size - 1).bit_length())
    lower = jnp.sum(partial & (2**bits - 1), dtype=jnp.uint32)
    upper = jnp.sum(partial >> bits, dtype=jnp.uint32)
    return Count(upper >> (32 - bits), upper << bits) + Count.of_uint32(lower)


def array_namespace(*arrays: Any) -> ModuleType:
    """Return `jax.numpy` if any array is JAX's, traced or not, else `numpy`."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
