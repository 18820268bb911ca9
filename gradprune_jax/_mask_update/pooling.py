r"""Pooling: the scores of blocks and channels, the same on every layout.

The score of a block of $c$ weights is the largest or the mean of their
magnitudes. A maximum is that of their keys. A sum of floats depends on the order of
summation, so on the layout, and its last bit would move whole channels. So the mean is
summed in integers: with $2^e$ the power of two below the leaf's largest finite
magnitude and F bits, F at least 33,

$$
q_i = \lceil |w_i| \, 2^{F - 1 - e} \rceil, \qquad
\mathrm{score} = 2^{e - F + 1} \Big( \sum_{i=1}^{c} q_i \Big) / c,
$$

the sum exact and the quotient rounded down, to float32 (float64 for such weights, in 31
bits). Rounding up makes no weight nothing. With D-bit digits of $q_i$, where
$c < 2^{32 - D}$, no sum of digits overflows 32 bits; $1 + \lfloor 32 / D
\rfloor$ digits keep the whole below $2^{64}$.

A block with a NaN, or else with an infinity, has that for its score. A block is live
as long as one of its weights is, and a live block ranks above every pruned one, also
where its score is zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.division import leading_quotient
from gradprune_jax._structures import Pool, Shape, unit_shape
from gradprune_jax._top_k.counts import Count
from gradprune_jax._top_k.keys import key_dtype, largest_key, ranking_keys, wider_dtype
from gradprune_jax._top_k.shards import Shard
from gradprune_jax._top_k.summation import (
    LONGEST_GROUP,
    Reduction,
    add_up,
    group_sizes,
    reduce_groups,
    split_axis,
)

LARGEST_BLOCK = 2**31 - 1


def score_dtype(dtype: Any, pool: Pool) -> np.dtype:
    """The floating dtype of the scores of weights that are ranked in `dtype`."""
    return wider_dtype(dtype, jnp.float32) if pool == "mean" else np.dtype(dtype)


def score_keys(
    weights: jax.Array,
    mask: jax.Array,
    *,
    block: Shape,
    pool: Pool,
    dtype: Any,
    stack_axis: int | None,
    shard: Shard,
) -> jax.Array:
    """The scores of a leaf's blocks, as keys that rank them.

    Args:
      weights: the leaf, or its local piece, which holds whole blocks but along axes
        that a block spans.
      mask: bool of its shape; pruned weights count as zeros.
      block: the lengths of a block.
      pool: how the magnitudes of a block make its score.
      dtype: the floating dtype of scores.
      stack_axis: the axis whose slices are scored apart, or None.
      shard: where the piece lies in the whole leaf.

    Returns:
      Unsigned integers of the blocks' shape: 0 for a pruned block, the bits of its
      score plus 1 for a live one. Those of blocks that reach over devices are the same
      on each of these.
    """
    windows = _Windows(block, shard, weights.shape)

    def keys() -> jax.Array:
        # Made anew for each reduction, in its loop: no array as large as the weights.
        pinned, pinned_mask = jax.lax.optimization_barrier((weights, mask))
        return ranking_keys(pinned, pinned_mask, dtype)

    highest = windows.maximum(keys())
    if pool == "max":
        return highest
    largest = _magnitudes(highest)
    infinity = np.asarray(largest_key(dtype) - 1, largest.dtype)
    finite = jnp.where(largest < infinity, largest, 0)
    top = _over_slices(finite, stack_axis, shard.of_units(block))
    means = _mean_keys(
        lambda: _magnitudes(keys()), _exponent(top, dtype), windows, dtype
    )
    scores = jnp.where(largest < infinity, means, largest)
    return jnp.where(highest > 0, scores + 1, 0)


def _magnitudes(keys: jax.Array) -> jax.Array:
    """The bits of |w| from the keys that rank weights, 0 for pruned ones."""
    return jnp.maximum(keys, 1) - 1


class _Windows:
    """The blocks of a leaf's local piece, and how to reduce each to one number."""

    def __init__(self, block: Shape, shard: Shard, local_shape: Shape) -> None:
        axes = range(len(block))
        spans = [
            length >= size for length, size in zip(block, shard.shape, strict=True)
        ]
        if math.prod(block) > LARGEST_BLOCK:
            raise ValueError(
                f"a block has {math.prod(block)} weights; at most {LARGEST_BLOCK} can "
                "be pooled."
            )
        self.whole_block = block
        self.whole_shape = shard.shape
        self.block = tuple(
            max(size, 1) if spanned else length
            for length, size, spanned in zip(block, local_shape, spans, strict=True)
        )
        self.units = unit_shape(local_shape, self.block)
        self.split_axes = tuple(
            sorted(n for axis in axes if spans[axis] for n in shard.axis_names[axis])
        )

    def maximum(self, numbers: jax.Array) -> jax.Array:
        """The largest number of every block."""
        largest = self._reduce(lambda array, axes: jnp.max(array, axes), numbers)
        return jax.lax.pmax(largest, self.split_axes) if self.split_axes else largest

    def sum(self, numbers: jax.Array) -> jax.Array:
        """The sum of every block."""
        total = self._reduce(add_up, numbers)
        return jax.lax.psum(total, self.split_axes) if self.split_axes else total

    def sizes(self) -> jax.Array:
        """How many weights each block has, the ragged ones fewer: uint32."""
        sizes = jnp.ones([1] * len(self.units), jnp.uint32)
        for axis, units in enumerate(self.units):
            length, whole = self.whole_block[axis], self.whole_shape[axis]
            along = np.full(units, min(length, whole), np.uint32)
            if whole % length and units:
                along[-1] = whole % length if length < whole else whole
            others = [other for other in range(len(self.units)) if other != axis]
            if length > 1:
                sizes = sizes * jnp.expand_dims(jnp.asarray(along), others)
        return sizes

    def _reduce(self, reduce: Reduction, numbers: jax.Array) -> jax.Array:
        """Every block of an array as one number, in the shape of the units."""
        edges = [
            (0, -size % length)
            for size, length in zip(numbers.shape, self.block, strict=True)
        ]
        if any(after for _, after in edges):
            numbers = jnp.pad(numbers, edges)
        groups: dict[int, int] = {}
        inside: list[int] = []
        for axis in reversed(range(numbers.ndim)):
            length = self.block[axis]
            if length == 1:
                continue
            spans = self.units[axis] == 1
            sizes = group_sizes(numbers, axis) if spans else _divisors(length)
            if not spans:
                numbers = split_axis(numbers, axis, length)
                inside = [other + 1 for other in inside]
                groups = {other + 1: group for other, group in groups.items()}
            inside.append(axis + (not spans))
            if length > LONGEST_GROUP and sizes:
                groups[inside[-1]] = sizes[-1]
        if groups:
            numbers = reduce_groups(reduce, numbers, groups)
            # Signed, or XLA would merge this reduction with the next. No bit is lost:
            # keys have no sign, and sums of signed integers wrap like unsigned ones.
            numbers = _with_sign(numbers, "int")
        reduced = reduce(numbers, tuple(inside)) if inside else numbers
        if groups:
            reduced = _with_sign(reduced, "uint")
        spanned = [
            axis
            for axis, (length, units) in enumerate(
                zip(self.block, self.units, strict=True)
            )
            if length > 1 and units == 1
        ]
        return jnp.expand_dims(reduced, spanned)


def _with_sign(numbers: jax.Array, kind: str) -> jax.Array:
    """The same bits as signed or unsigned integers."""
    dtype = np.dtype(f"{kind}{8 * numbers.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(numbers, dtype)


def _mean_keys(
    keys: Callable[[], jax.Array],
    top_exponent: jax.Array,
    windows: _Windows,
    dtype: Any,
) -> jax.Array:
    """The mean of every block of finite weights, rounded down: the bits of a float."""
    bits = 32 - math.prod(windows.whole_block).bit_length()
    digits = 1 + 32 // bits
    total = Count(jnp.uint32(0), jnp.uint32(0))
    for digit in range(digits):
        part = windows.sum(_digit(keys(), top_exponent, dtype, digit, digits, bits))
        total = total + _shifted(part, digit * bits)
    quotient, exponent = leading_quotient(total, windows.sizes())
    exponent = top_exponent + exponent - (digits * bits - 1)
    return jnp.where(
        (total.high | total.low) == 0, 0, _float_bits(quotient, exponent, dtype)
    )


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


def _over_slices(numbers: jax.Array, stack_axis: int | None, shard: Shard) -> jax.Array:
    """The largest number of every slice of all units, to broadcast over weights."""
    axes = tuple(axis for axis in range(numbers.ndim) if axis != stack_axis)
    largest = jnp.max(numbers, axes, keepdims=True, initial=0)
    names = tuple(sorted(name for axis in axes for name in shard.axis_names[axis]))
    return jax.lax.pmax(largest, names) if names else largest


def _shifted(numbers: jax.Array, bits: int) -> Count:
    """uint32 numbers times 2^bits."""
    zero = jnp.zeros_like(numbers)
    if bits == 0:
        return Count(zero, numbers)
    if bits >= 32:
        return Count(numbers << (bits - 32), zero)
    return Count(numbers >> (32 - bits), numbers << bits)


def _divisors(length: int) -> list[int]:
    """The lengths of groups that divide a block's length."""
    return [size for size in range(2, LONGEST_GROUP + 1) if length % size == 0]
