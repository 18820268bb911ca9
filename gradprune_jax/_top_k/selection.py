"""Selection: the exact k units of the largest keys, by counting.

The threshold of every group is found by a search over keys. If more than k units reach
it, those whose key equals it are tied, and the lower flat index wins. Up to which index
ties stay is found by the same search, over indices counted from the end. Between leaves
of one group the earlier leaf wins, so the counts of the leaves say how many ties each
of them keeps, and each searches its own indices.

Only counts leave a device, so the result is the same on every mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gradprune_jax._top_k.counts import Count, cumulative_sum, minimum
from gradprune_jax._top_k.policies import along_line, around, thirds_then_line
from gradprune_jax._top_k.ranking import Ranking
from gradprune_jax._top_k.sampling import guess_thresholds
from gradprune_jax._top_k.search import Bracket, Groups, search
from gradprune_jax._top_k.units import Units


def top_k(
    units: Sequence[Units], kept: Count, *, together: bool = False
) -> list[jax.Array]:
    """Marks the `kept` units of the largest keys in every group.

    Args:
      units: the leaves, with the slices of all of them in order.
      kept: how many units to keep, [groups].
      together: whether all slices are one group; else each is a group of its own.

    Returns:
      For each leaf, bool of its units' shape: in every group exactly `kept` units of
      keys above 0, or all of them if there are fewer: those that come first in a stable
      descending sort of the keys. What it says of units of key 0 has no meaning.
    """
    ranking = Ranking(units)
    groups = Groups(ranking.slices, together)
    bracket = _search_keys(ranking, kept, groups)
    # Units of key 0 are pruned already, so it does not matter which of them stay.
    is_exact = groups.total(bracket.at_low).equals(kept) | (bracket.low == 0)
    low = groups.spread(bracket.low)

    def without_ties() -> tuple[jax.Array, jax.Array]:
        return low, jnp.zeros(groups.slices, jnp.uint32)

    def with_ties() -> tuple[jax.Array, jax.Array]:
        exact = groups.spread(is_exact)
        ties = Bracket(
            low=low,
            high=jnp.where(exact, low, groups.spread(bracket.high)),
            at_low=bracket.at_low,
            at_high=jnp.where(exact, bracket.at_low, bracket.at_high),
        )
        wanted = kept
        if together:
            tied = ties.at_low - ties.at_high
            share = _share_in_order(kept - groups.total(ties.at_high), tied)
            wanted = Count.of_uint32(ties.at_high + share)
        return ties.high, _search_indices(ranking, ties, wanted)

    high, start = jax.lax.cond(jnp.all(is_exact), without_ties, with_ties)
    return ranking.kept(low, high, start)


def _search_keys(ranking: Ranking, kept: Count, groups: Groups) -> Bracket:
    """The largest thresholds that the `kept` units of every group reach."""
    largest = ranking.unreached
    largest = largest[:1] if groups.together else largest
    sizes = ranking.slice_sizes
    start = Bracket(
        low=jnp.zeros_like(largest),
        high=jnp.asarray(largest + 1),  # so `low` can be one that no unit reaches
        at_low=jnp.asarray(sizes),
        at_high=jnp.zeros_like(sizes),
    )
    guess = guess_thresholds(ranking, kept, groups, largest + 1)
    probe = thirds_then_line(largest >> 8) if guess is None else around(guess, start)
    return search(ranking.count_reaching, start, kept, groups, probe)


def _search_indices(ranking: Ranking, ties: Bracket, wanted: Count) -> jax.Array:
    """The reversed index from which on ties are kept, so that `wanted` units are.

    Args:
      ranking: the leaves.
      ties: the keys of tied units, one bracket for each slice.
      wanted: how many units of each slice to keep, [slices].

    Returns:
      uint32 [slices].
    """
    start = ties._replace(
        low=jnp.zeros(ranking.slices, jnp.uint32),
        high=jnp.asarray(ranking.slice_sizes) + 1,  # as above: none may be kept
    )
    count = functools.partial(ranking.count_kept, ties.low, ties.high)
    apart = Groups(ranking.slices, together=False)
    return search(count, start, wanted, apart, along_line).low


def _share_in_order(wanted: Count, ties: jax.Array) -> jax.Array:
    """How many of its ties each slice keeps, earlier slices first: uint32 [slices]."""
    own = Count.of_uint32(ties)
    before = cumulative_sum(ties) - own
    return minimum(wanted - minimum(before, wanted), own).low
