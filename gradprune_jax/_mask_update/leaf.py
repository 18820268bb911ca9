"""The records of one pruned leaf: what a rule has of it, and by what it is ranked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._layouts import laid_out_like
from gradprune_jax._scores import Score, ScoredLeaf, score_dtype
from gradprune_jax._top_k import STATIC, Shard, ranking_keys, score_keys, whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrunedLeaf:
    """One leaf of a rule.

    Attributes:
      weights: the leaf, or its local piece inside `shard_map`; floating.
      mask: bool of the same shape, True where a weight is live.
      shard: where the piece lies in the whole leaf; known when the step is traced.
      name: its path, by which coupled channels find their members.
      gradient: of the same shape; None where the rule's score reads none.
      score_state: what the score has accumulated; None where it accumulates nothing.
    """

    weights: jax.Array
    mask: jax.Array
    shard: Shard = dataclasses.field(metadata=STATIC)
    name: str = dataclasses.field(metadata=STATIC)
    gradient: Any = None
    score_state: Any = None

    @classmethod
    def unpruned(
        cls,
        weights: jax.Array,
        name: str,
        score: Score | None = None,
        gradient: Any = None,
    ) -> PrunedLeaf:
        """A whole leaf of which nothing is pruned yet, and one gradient seen."""
        mask = jnp.ones_like(weights, dtype=bool)
        state = None
        if score is not None and score.accumulates:
            zeros = jnp.zeros_like(weights, dtype=score_dtype(weights.dtype))
            state = score.accumulate(zeros, weights, gradient)
        return cls(weights, mask, whole(weights.shape), name, gradient, state)

    def ranked(self, score: Score | None) -> RankedLeaf:
        """The leaf with the numbers by which a score ranks it; None is magnitude."""
        if score is None:
            return RankedLeaf(self.weights, self.mask, self.shard, self.name, False)
        numbers = score.scores(
            ScoredLeaf(
                self.name,
                self.weights,
                self.gradient,
                self.score_state,
                self.flat_index,
            )
        )
        numbers = laid_out_like(numbers, self.weights)  # a user's own may be otherwise
        return RankedLeaf(numbers, self.mask, self.shard, self.name, score.is_signed)

    def flat_index(self) -> jax.Array:
        """The flat index of every weight in the whole leaf: uint32."""
        shape = self.weights.shape
        index = jnp.zeros_like(self.weights, dtype=jnp.uint32)
        for axis, size in enumerate(shape):
            stride = math.prod(self.shard.shape[axis + 1 :])
            along = self.shard.positions(axis, size, stride)
            index += jnp.expand_dims(along, [i for i in range(len(shape)) if i != axis])
        return index


def with_masks(
    leaves: Sequence[PrunedLeaf], masks: Sequence[jax.Array]
) -> list[PrunedLeaf]:
    """The leaves with other masks."""
    return [
        dataclasses.replace(leaf, mask=mask)
        for leaf, mask in zip(leaves, masks, strict=True)
    ]


def without_masks(leaves: Sequence[PrunedLeaf]) -> list[PrunedLeaf]:
    """The leaves for an update that is handed their masks apart."""
    nothing: Any = None
    return [dataclasses.replace(leaf, mask=nothing) for leaf in leaves]


class RankedLeaf(NamedTuple):
    """One leaf with the numbers that rank its weights.

    Attributes:
      numbers: floating, of the leaf or its local piece: the weights themselves, or
        their scores.
      mask: bool of the same shape, True where a weight is live.
      shard: where the piece lies in the whole leaf.
      name: its path.
      signed: whether the numbers rank by their value; else by their magnitude.
    """

    numbers: jax.Array
    mask: jax.Array
    shard: Shard
    name: str
    signed: bool


def weight_keys(
    numbers: jax.Array, mask: jax.Array, dtype: Any, *, signed: bool = False
) -> jax.Array:
    """The key of every weight by its number, 0 where it is pruned."""
    return (score_keys if signed else ranking_keys)(numbers, mask, dtype)
