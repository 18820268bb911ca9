"""Segments: leaves, or slices of stacked leaves, as allocation counts them."""

from __future__ import annotations

import math
from typing import NamedTuple

from gradprune_jax._rules.rule import Rule
from gradprune_jax._structures import (
    NM,
    Shape,
    Unstructured,
    output_axis,
    slice_shape,
    unit_shape,
)


class Segment(NamedTuple):
    """A leaf, or one slice of a stacked leaf.

    Attributes:
      units: the number of its units: weights, blocks or channels.
      shape: the shape of its weights.
      output_channels: into how many parts units are divided along the output axis.
      unit_inputs: the weights that a unit has in each output channel.
    """

    units: int
    shape: tuple[int, ...]
    output_channels: int = 1
    unit_inputs: int = 1

    @classmethod
    def of_leaf(cls, rule: Rule, shape: Shape) -> Segment:
        """A slice of a rule's leaf, or the leaf if it is not stacked.

        Args:
          rule: the rule.
          shape: the shape of the whole leaf.
        """
        own = slice_shape(shape, rule.stack_axis)
        block = (rule.structure or Unstructured()).block_shape(own)
        if isinstance(rule.structure, NM):  # which counts weights
            block = Unstructured().block_shape(own)
        units = unit_shape(own, block)
        if not own:
            return cls(1, own)
        axis = output_axis(rule.output_axis, len(own))
        return cls(
            units=math.prod(units),
            shape=own,
            output_channels=units[axis],
            unit_inputs=math.prod(block) // block[axis],
        )
