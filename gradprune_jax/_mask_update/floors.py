"""Floors: the units that stay in any case, of a leaf and of each output channel."""

from __future__ import annotations

import fractions
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update import rounding
from gradprune_jax._mask_update.slices import Segment
from gradprune_jax._top_k.counts import Count


def density_floors(min_density: Any, segments: Sequence[Segment]) -> Count:
    r"""The units that each segment keeps in any case: $\lceil d n \rceil$."""
    sizes = [segment.units for segment in segments]
    if is_traced(min_density):
        return rounding.ceiling_count(sizes, min_density)
    return Count.of([least_units(size, min_density) for size in sizes])


def channel_floors(min_per_channel: Any, segments: Sequence[Segment]) -> Count:
    r"""The units that each output channel of a segment keeps in any case.

    $$
    \min(\lceil m / w \rceil, n / c)
    $$

    with m the weights that are to stay, w those that a unit has in a channel, and n / c
    the units of a channel.

    Args:
      min_per_channel: m, traced or not.
      segments: leaves or slices.

    Returns:
      One count a segment, the same for all of its channels.
    """
    if not is_traced(min_per_channel):
        return Count.of(
            [channel_units(segment, min_per_channel) for segment in segments]
        )
    of_channel = np.array([_units_of_channel(each) for each in segments], np.uint32)
    inputs = np.array([segment.unit_inputs for segment in segments], np.uint32)
    wanted = jnp.maximum(min_per_channel, 0).astype(jnp.uint32)
    units = wanted // inputs + (wanted % inputs != 0).astype(jnp.uint32)
    return Count.of_uint32(jnp.minimum(units, of_channel))


def least_units(size: int, min_density: Any) -> int:
    """The floor of one segment as a Python integer.

    The density is the decimal number that it prints as, so that 0.1 of 1,000 is 100,
    although the float nearest to 0.1 is larger.

    Examples:
      >>> least_units(1_000, 0.1), least_units(7, 0.1)
      (100, 1)
    """
    return math.ceil(size * fractions.Fraction(str(np.asarray(min_density)[()])))


def channel_units(segment: Segment, min_per_channel: int) -> int:
    """The floor of each output channel of one segment as a Python integer.

    Examples:
      >>> channel_units(Segment(80, (10, 8), output_channels=8), min_per_channel=2)
      2
    """
    wanted = -(-min_per_channel // max(segment.unit_inputs, 1))
    return min(wanted, _units_of_channel(segment))


def channels_total(segment: Segment, min_per_channel: int) -> int:
    """The units that all output channels of a segment keep in any case."""
    return channel_units(segment, min_per_channel) * segment.output_channels


def _units_of_channel(segment: Segment) -> int:
    return segment.units // max(segment.output_channels, 1)
