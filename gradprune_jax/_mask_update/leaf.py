"""The record of one pruned leaf: its weights, its mask, its place on the mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gradprune_jax._top_k import STATIC, Shard, whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrunedLeaf:
    """One leaf of a rule.

    Attributes:
      weights: the leaf, or its local piece inside `shard_map`; floating.
      mask: bool of the same shape, True where a weight is live.
      shard: where the piece lies in the whole leaf; known when the step is traced.
      name: its path, by which coupled channels find their members.
    """

    weights: jax.Array
    mask: jax.Array
    shard: Shard = dataclasses.field(metadata=STATIC)
    name: str = dataclasses.field(metadata=STATIC)

    @classmethod
    def unpruned(cls, weights: jax.Array, name: str) -> PrunedLeaf:
        """A whole leaf of which nothing is pruned yet."""
        mask = jnp.ones_like(weights, dtype=bool)
        return cls(weights, mask, whole(weights.shape), name)
