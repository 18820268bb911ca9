"""Selection: the exact k units of largest key, by counting.

The threshold of every group is found by a search over keys. If more than k units
reach it, those whose key equals it are tied, and the lower flat index wins. Which
index is the last to stay is found by the same search, over reversed indices. Among
leaves that are ranked together the earlier leaf wins, so the counts of the leaves say
how many ties each of them keeps, and each searches its own indices.

Only counts leave a device, so the result is the same on every mesh.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k import counting
from gradprune_jax._top_k.counting import Units
from gradprune_jax._top_k.counts import Count, cumulative_sum, minimum
from gradprune_jax._top_k.keys import key_dtype, largest_ranking_key
from gradprune_jax._top_k.sampling import guess_thresholds
from gradprune_jax._top_k.search import Bracket, Groups, search


def top_k(
    units: Sequence[Units], kept: Count, *, together: bool = False
) -> list[jax.Array]:
    """Marks the `kept` units of largest key in every group.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      kept: how many units to keep, [groups].
      together: whether all segments are one group; else each is a group of its own.

    Returns:
      For each leaf, bool of its units' shape: in every group exactly `kept` units of
      keys above 0, or all of them if there are fewer: those that come first in a stable
      descending sort of the keys. What it says of units of key 0 has no meaning.
    """
    sizes = [leaf.slice_size for leaf in units for _ in range(leaf.slices)]
    groups = Groups(len(sizes), together)
    bracket = _search_keys(units, kept, groups, np.array(sizes, np.uint32))
    # Those of key 0 are pruned already, so it does not matter which of them stay.
    exact = groups.total(bracket.at_low).equals(kept) | (bracket.low == 0)
    low = groups.spread(bracket.low)

    def without_ties() -> tuple[jax.Array, jax.Array]:
        return low, jnp.zeros(len(sizes), jnp.uint32)

    def with_ties() -> tuple[jax.Array, jax.Array]:
        is_exact = groups.spread(exact)
        high = jnp.where(is_exact, low, groups.spread(bracket.high))
        at_high = jnp.where(is_exact, bracket.at_low, bracket.at_high)
        wanted = kept
        if together:
            kept_ties = kept - groups.total(at_high)
            share = _share_in_order(kept_ties, bracket.at_low - at_high)
            wanted = Count.of_uint32(at_high + share)

        def count_kept(starts: jax.Array) -> jax.Array:
            lows, highs = (jnp.broadcast_to(t, starts.shape) for t in (low, high))
            return counting.count_pairs(units, _keeps, lows, highs, starts)

        indices = Bracket(
            jnp.zeros(len(sizes), jnp.uint32),
            jnp.array(sizes, jnp.uint32) + 1,  # that of no unit is their number
            bracket.at_low,
            at_high,
        )
        ties = search(count_kept, indices, wanted, Groups(len(sizes), False))
        return high, ties.low

    high, start = jax.lax.cond(jnp.all(exact), without_ties, with_ties)
    return counting.mark(units, _keeps, low, high, start)


def _search_keys(
    units: Sequence[Units], kept: Count, groups: Groups, sizes: np.ndarray
) -> Bracket:
    """The largest thresholds that the `kept` units of every group reach."""
    dtype = _threshold_dtype(units)
    tops = [_above_all_keys(leaf) for leaf in units for _ in range(leaf.slices)]
    top = np.array(tops[:1] if groups.together else tops, dtype)
    return search(
        lambda probes: counting.count_pairs(units, _reaches, probes),
        Bracket(
            jnp.zeros_like(top),
            jnp.asarray(top + 1),  # which nothing can reach
            jnp.asarray(sizes),
            jnp.zeros_like(sizes),
        ),
        kept,
        groups,
        guess=guess_thresholds(units, kept, groups, top + 1),
        coarse_width=top >> 8,
    )


def _reaches(leaf: Units, low: jax.Array) -> jax.Array:
    """The units whose key is at least `low`."""
    return leaf.keys().astype(low.dtype) >= low


def _keeps(leaf: Units, low: jax.Array, high: jax.Array, start: jax.Array) -> jax.Array:
    """The units above the ties in [low, high), and the ties of low enough index."""
    keys = leaf.keys().astype(low.dtype)
    return (keys >= high) | ((keys >= low) & (leaf.reversed_index() >= start))


def _share_in_order(wanted: Count, ties: jax.Array) -> jax.Array:
    """How many of its ties each leaf keeps, the earlier leaf first: uint32 [leaves]."""
    up_to = cumulative_sum(ties)
    own = Count.of_uint32(ties)
    before = up_to - own
    left = wanted - minimum(before, wanted)
    return minimum(left, own).low


def _threshold_dtype(units: Sequence[Units]) -> np.dtype:
    """Unsigned integers that hold the keys of every leaf, 32 bits at least."""
    return np.result_type(np.uint32, *(key_dtype(leaf.dtype) for leaf in units))


def _above_all_keys(leaf: Units) -> int:
    """A threshold that no unit of the leaf reaches, not even those kept first."""
    return largest_ranking_key(leaf.dtype) + 2
