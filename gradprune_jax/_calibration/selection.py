"""Selection: the exact top k of scores, as masks of weights are made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update import largest_in_groups
from gradprune_jax._top_k import Count, Units, ranking_keys, top_k, whole


def largest(
    scores: jax.Array,
    kept: jax.Array,
    slice_axes: tuple[int, ...],
    live: jax.Array | None = None,
) -> jax.Array:
    """Marks the largest scores of every slice; of equal ones the first.

    Args:
      scores: floating, not negative.
      kept: uint32 scalar, how many of each slice.
      slice_axes: the axes along which slices lie.
      live: bool of their shape, what may be marked at all; None for all.

    Returns:
      bool of the shape of `scores`.
    """
    live = jnp.ones_like(scores, dtype=bool) if live is None else live
    units = Units(
        (scores, live),
        first=None,
        make_keys=ranking_keys,
        dtype=np.dtype(scores.dtype),
        slice_axes=slice_axes,
        shard=whole(scores.shape),
    )
    counts = jnp.full(units.slices, kept, jnp.uint32)
    return top_k([units], Count.of_uint32(counts))[0] & live


def largest_of_groups(scores: jax.Array, axis: int, of: int, keep: int) -> jax.Array:
    """Marks the largest scores of every group of neighbours along an axis."""
    live = jnp.ones_like(scores, dtype=bool)
    keys = ranking_keys(scores, live, np.dtype(scores.dtype))
    return largest_in_groups(keys, axis, of, jnp.int32(keep))
