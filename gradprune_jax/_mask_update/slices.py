"""Slices as allocation counts them: how many units, of which shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gradprune_jax._geometry import block_shape, output_axis, slice_shape, unit_shape
from gradprune_jax._program import ChannelGroup
from gradprune_jax._rules import Rule
from gradprune_jax._structures import Shape, counted


class Slice(NamedTuple):
    """A leaf, or one layer of a stacked leaf.

    Attributes:
      units: the number of its units: weights, blocks or channels.
      shape: the shape of its weights.
      output_channels: into how many parts units are divided along the output axis.
      unit_inputs: the weights that a unit has in each output channel.
    """

    units: int
    shape: Shape
    output_channels: int = 1
    unit_inputs: int = 1


def slices_of_leaf(rule: Rule, shape: Shape) -> list[Slice]:
    """The slices of a rule's leaf: one, or as many as it has layers.

    Args:
      rule: the rule.
      shape: the shape of the whole leaf.

    Returns:
      The slices, which are all alike.

    Examples:
      >>> from gradprune_jax import Channel
      >>> rule = Rule(None, structure=Channel(), stack_axis=0)
      >>> slices_of_leaf(rule, (2, 3, 8))[0]
      Slice(units=8, shape=(3, 8), output_channels=8, unit_inputs=3)
    """
    layers = 1 if rule.stack_axis is None else shape[rule.stack_axis]
    own = slice_shape(shape, rule.stack_axis)
    if not own:
        return [Slice(1, own)] * layers
    block = block_shape(counted(rule.structure), own)
    units = unit_shape(own, block)
    axis = output_axis(rule.output_axis, len(own))
    one = Slice(
        units=math.prod(units),
        shape=own,
        output_channels=units[axis],
        unit_inputs=math.prod(block) // block[axis],
    )
    return [one] * layers


def slices_of_groups(groups: Sequence[ChannelGroup]) -> list[Slice]:
    """A slice for each group of coupled channels, whose units are ranked together."""
    return [Slice(group.size, (group.size,)) for group in groups]
