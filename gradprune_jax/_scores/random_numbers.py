"""Random numbers that are the same on every mesh."""

from __future__ import annotations

import zlib

import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from gradprune_jax._scores.base import Array


def uniform(seed: int, name: str, index: Array, turn: Array) -> Array:
    """A random number in [0, 1) for every weight, the same on every layout.

    Args:
      seed: an integer of 32 bits.
      name: the path of the leaf, so that leaves of one shape differ.
      index: the flat index of every weight in its whole leaf, uint32.
      turn: uint32 scalar, which turn it is: each has other numbers.

    Returns:
      float32 of the shape of `index`, multiples of 2^-24: Threefry (Salmon et al.,
      2011) of the turn and the index.
    """
    words = (jnp.uint32(seed), jnp.uint32(zlib.crc32(name.encode())), turn)
    # Of the index, so that the words are laid out over devices as it is.
    spread = [(index & 0) | word for word in words]
    one, other = threefry2x32_p.bind(*spread, index)
    return ((one ^ other) >> 8).astype(jnp.float32) * jnp.float32(2**-24)
