"""Keys: unsigned integers that rank weights, made without arithmetic on floats."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def ranking_dtype(*dtypes: Any) -> np.dtype:
    """Return the floating dtype in which weights of these dtypes are ranked together.

    Every conversion to it is exact: 8-bit floats are ranked as bfloat16, others in the
    dtype to which they promote together.
    """
    at_least_16_bits = [
        jnp.dtype(jnp.bfloat16) if jnp.finfo(dtype).bits == 8 else jnp.dtype(dtype)
        for dtype in dtypes
    ]
    return functools.reduce(wider_dtype, at_least_16_bits)


def wider_dtype(one: Any, other: Any) -> np.dtype:
    """Return the dtype to which two promote, also if the user forbids promotion.

    Raises:
      ValueError: if they do not promote, as 8-bit floats of two kinds do not.
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(one, other)


def key_dtype(dtype: Any) -> np.dtype:
    """Return the unsigned integer dtype that is as wide as a floating dtype."""
    return np.dtype(f"uint{jnp.finfo(dtype).bits}")


def largest_key(dtype: Any) -> int:
    """Return the key of NaN, the largest that `magnitude_keys` gives."""
    infinity = np.asarray(np.inf, dtype).view(key_dtype(dtype))
    return int(infinity) + 1


def is_nonzero(leaf: jax.Array) -> jax.Array:
    """Return where weights are not zero, or a mask is True; denormals are not zero.

    On CPU a comparison with zero takes denormals for zero, so the bits are compared.
    """
    if leaf.dtype == bool or jnp.finfo(leaf.dtype).bits < 8:
        return leaf.astype(bool)
    return magnitude_keys(leaf, ranking_dtype(leaf.dtype)) != 0


def magnitude_keys(weights: jax.Array, dtype: Any) -> jax.Array:
    r"""Return integers that sort like the magnitudes of weights, NaN above infinity.

    The bits of a non-negative float, read as an integer, sort like the float. So
    $|a| < |b| \iff key(a) < key(b)$, with $key(\pm 0) = 0$. Denormals are told apart.
    All NaNs are equal, whatever their sign and payload.

    Args:
      weights: floating array of any shape.
      dtype: the floating dtype to rank in, at least as wide as the weights' own.

    Returns:
      Unsigned integers of the shape of `weights`, as wide as `dtype`.

    Examples:
      >>> keys = magnitude_keys(jnp.asarray([-2.0, 1.0, jnp.nan, -0.0]), jnp.float32)
      >>> [int(index) for index in jnp.argsort(-keys.astype(jnp.int32))]
      [2, 0, 1, 3]
    """
    unsigned = key_dtype(dtype)
    bits = jax.lax.bitcast_convert_type(weights.astype(dtype), unsigned)
    without_sign = bits & np.asarray(np.iinfo(unsigned).max >> 1, unsigned)
    return jnp.minimum(without_sign, np.asarray(largest_key(dtype), unsigned))


def ranking_keys(weights: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    """Return the key of every weight: 0 where it is pruned, above 0 where it is live.

    So a live weight that is exactly zero ranks above all pruned ones, and the top k are
    live weights as long as there are k of them.
    """
    return jnp.where(mask, magnitude_keys(weights, dtype) + 1, 0)


def score_keys(scores: jax.Array, mask: jax.Array, dtype: Any) -> jax.Array:
    r"""Return the key of every weight by its score: 0 where it is pruned.

    Scores have signs. With b the key of infinity among magnitudes, a live weight of
    score s has the key $b \pm |s| + 1$, where |s| stands for its bits: above 0 for
    minus infinity, alike for both zeros, and largest for NaN of either sign.

    Args:
      scores: floating array of any shape.
      mask: bool of this shape, True where a weight is live.
      dtype: the floating dtype to rank in, at least as wide as the scores' own.

    Returns:
      Unsigned integers of this shape, as wide as `dtype`.

    Examples:
      >>> scores = jnp.asarray([0.5, -2.0, jnp.nan, -0.5, -jnp.inf])
      >>> keys = score_keys(scores, jnp.ones(5, bool), jnp.float32)
      >>> [int(index) for index in jnp.argsort(keys, descending=True)]
      [2, 0, 3, 1, 4]
    """
    magnitudes = magnitude_keys(scores, dtype)
    infinity = np.asarray(largest_key(dtype) - 1, magnitudes.dtype)
    is_below = jnp.signbit(scores.astype(dtype)) & (magnitudes <= infinity)
    keys = jnp.where(is_below, infinity - magnitudes, infinity + magnitudes)
    return jnp.where(mask, keys + 1, 0)


def largest_ranking_key(dtype: Any, *, signed: bool = False) -> int:
    """Return the key of a live NaN, the largest of `ranking_keys` or `score_keys`."""
    return largest_key(dtype) + 1 + signed * (largest_key(dtype) - 1)


def ranking_key(magnitude: float, dtype: Any) -> int:
    """Return the key of a live weight of this magnitude, as `ranking_keys` gives it."""
    return int(np.asarray(magnitude, dtype).view(key_dtype(dtype))) + 1
