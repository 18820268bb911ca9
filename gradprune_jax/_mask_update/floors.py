"""Floors: the units that stay in any case, of a slice and of each output channel."""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update.rounding import ceiling_count
from gradprune_jax._mask_update.slices import Slice
from gradprune_jax._top_k import Count, Units


def protect(units: Sequence[Units], first: Sequence[jax.Array]) -> list[Units]:
    """The units, of which some are to be kept before all others."""
    return [
        dataclasses.replace(leaf, first=own)
        for leaf, own in zip(units, first, strict=True)
    ]


def density_floors(min_density: Any, slices: Sequence[Slice]) -> Count:
    r"""The units that each slice keeps in any case: $\lceil d n \rceil$.

    A number is taken as the decimal that it prints as: 0.1 of 1,000 is 100, although
    the float nearest to 0.1 is larger.

    Examples:
      >>> floors = density_floors(0.1, [Slice(1_000, (1_000,)), Slice(7, (7,))])
      >>> print(floors.integers())
      [100 1]
    """
    sizes = [each.units for each in slices]
    if is_traced(min_density):
        return ceiling_count(sizes, min_density)
    decimal = fractions.Fraction(str(np.asarray(min_density)[()]))
    return Count.of([math.ceil(size * decimal) for size in sizes])


def channel_floors(min_per_channel: Any, slices: Sequence[Slice]) -> Count:
    r"""The units that each output channel of a slice keeps in any case.

    $$
    \min(\lceil m / w \rceil, n / c)
    $$

    with m the weights that are to stay, w those that a unit has in a channel, and n / c
    the units of a channel.

    Args:
      min_per_channel: m, traced or not.
      slices: the slices.

    Returns:
      One count a slice, the same for all of its channels.

    Examples:
      >>> wide = Slice(80, (10, 8), output_channels=8)
      >>> print(channel_floors(2, [wide]).integers())
      [2]
    """
    of_channel = np.array(
        [each.units // max(each.output_channels, 1) for each in slices], np.uint32
    )
    # No floor is above 2^31 - 1, so larger units are the same as this large.
    inputs = np.array(
        [min(max(each.unit_inputs, 1), 2**32 - 1) for each in slices], np.uint32
    )
    if is_traced(min_per_channel):
        wanted = jnp.maximum(min_per_channel, 0).astype(jnp.uint32)
        units = wanted // inputs + (wanted % inputs != 0).astype(jnp.uint32)
        return Count.of_uint32(jnp.minimum(units, of_channel))
    units = -(-min_per_channel // inputs.astype(np.int64))
    return Count.of_uint32(np.minimum(units, of_channel).astype(np.uint32))
