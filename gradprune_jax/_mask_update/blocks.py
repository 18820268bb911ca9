"""Blocks: a leaf cut into the blocks of its structure, none of them by a device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._geometry import leaf_block
from gradprune_jax._mask_update.leaf import RankedLeaf
from gradprune_jax._rules import Rule
from gradprune_jax._structures import NM, Shape, Unstructured
from gradprune_jax._top_k import Shard, parts


class BlockedLeaf(NamedTuple):
    """One leaf, whole along every axis where a block would reach over devices.

    Attributes:
      numbers: those that rank the weights of the leaf, or of its local piece.
      mask: bool of its shape.
      shard: where the piece lies in the whole leaf.
      block: the lengths of a block of the rule's structure.
      gathered: the axes along which the piece was made whole, with its own shard.
      signed: whether numbers rank by their value; else by their magnitude.
    """

    numbers: jax.Array
    mask: jax.Array
    shard: Shard
    block: Shape
    gathered: tuple[tuple[int, Shard], ...]
    signed: bool

    @classmethod
    def of(cls, rule: Rule, leaf: RankedLeaf) -> BlockedLeaf:
        """Cuts a leaf into blocks; pieces are gathered only where they cut a block."""
        numbers, mask, shard = leaf.numbers, leaf.mask, leaf.shard
        structure = rule.structure or Unstructured()
        block = leaf_block(structure, shard.shape, rule.stack_axis)
        gathered = []
        for axis, length in enumerate(block):
            size = shard.shape[axis]
            part = size // parts(numbers, shard, axis)
            # Blocks that span an axis are pooled over devices; groups of N:M are not.
            spans = length >= size and not isinstance(structure, NM)
            if length > 1 and not spans and part != size and part % length:
                gathered.append((axis, shard))
                numbers, mask = (shard.gather(x, axis) for x in (numbers, mask))
                shard = shard.without(axis)
        return cls(numbers, mask, shard, block, tuple(gathered), leaf.signed)

    def own_part(self, array: jax.Array, shape: Shape) -> jax.Array:
        """The local piece's part of a mask of the gathered leaf."""
        for axis, shard in self.gathered:
            array = shard.own_part(array, axis, shape[axis], axis)
        return array

    def expand(self, kept_units: jax.Array) -> jax.Array:
        """True where a weight's unit is kept; broadcasts over axes that units span."""
        mask = kept_units
        for axis, (length, size) in enumerate(
            zip(self.block, self.numbers.shape, strict=True)
        ):
            if 1 < length < self.shard.shape[axis]:
                mask = _repeat(mask, length, axis)
                mask = jax.lax.slice_in_dim(mask, 0, size, axis=axis)
        return mask


def _repeat(array: jax.Array, times: int, axis: int) -> jax.Array:
    """Repeats every element of an axis, and moves none between devices."""
    before, size, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    spread = jnp.expand_dims(array, axis + 1)
    spread = jnp.broadcast_to(spread, (*before, size, times, *after))
    return spread.reshape(*before, size * times, *after)
