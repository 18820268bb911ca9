"""Selection: the exact k units of the largest keys, by counting.

The threshold of every group is found by a search over keys. If more than k units reach
it, those whose key equals it are tied, and the lower flat index wins. Up to which index
ties stay is found by the same search, over indices counted from the end. Between leaves
of one group the earlier leaf wins, so the counts of the leaves say how many ties each
of them keeps, and each searches its own indices.

Only counts leave a device, so the result is the same on every mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.counts import Count, cumulative_sum, minimum, select
from gradprune_jax._top_k.packing import Bins, bins_of
from gradprune_jax._top_k.policies import along_line, around, thirds_then_line
from gradprune_jax._top_k.ranking import Ranking, Thresholds
from gradprune_jax._top_k.sampling import guess_thresholds
from gradprune_jax._top_k.search import Bracket, Groups, Probes, State, choose, search
from gradprune_jax._top_k.units import Units

# Between these lies the threshold of most layers, whatever their initializer.
LIKELY_MAGNITUDES = (2.0**-9, 2.0**-3)


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
    bins = bins_of(units) if ranking.is_traced and not together else []
    if bins:
        thresholds = _thresholds_by_bins(units, bins, kept)
    else:
        thresholds = _thresholds(ranking, kept, together)
    return ranking.kept(thresholds)


def _thresholds_by_bins(
    units: Sequence[Units], bins: Sequence[Bins], kept: Count
) -> Thresholds:
    """The thresholds of slices that are each a group: bin by bin, then of the others.

    Args:
      units: the leaves.
      bins: those of them that are packed.
      kept: how many units to keep, [slices].
    """
    leaf_of_slice = np.repeat(np.arange(len(units)), [leaf.slices for leaf in units])
    found, order = [], []
    for each in bins:
        found.append(_thresholds_of_bins(each, kept))
        order.append(each.slices.ravel())
    alone = np.setdiff1d(np.arange(len(leaf_of_slice)), np.concatenate(order))
    if alone.size:
        leaves = [units[i] for i in np.unique(leaf_of_slice[alone])]
        own = jax.tree.map(lambda numbers: numbers[alone], kept)
        found.append(_thresholds(Ranking(leaves), own, together=False))
        order.append(alone)
    numbers = np.concatenate(order)
    places = np.argsort(numbers, kind="stable")[np.sum(numbers < 0) :]
    return jax.tree.map(
        lambda *parts: jnp.concatenate([part.ravel() for part in parts])[places],
        *found,
    )


def _thresholds_of_bins(bins: Bins, kept: Count) -> Thresholds:
    """The thresholds of all slices of bins, one bin after the other: [bins, slices]."""
    wanted = jax.tree.map(
        lambda numbers: jnp.where(
            bins.slices < 0, 0, jnp.asarray(numbers)[bins.slices]
        ),
        kept,
    )

    def of_bin(number: jax.Array, own: Count) -> Thresholds:
        return _thresholds(Ranking([bins.pack(number)]), own, together=False)

    numbers = jnp.arange(len(bins.leaves))
    return jax.lax.map(lambda turn: of_bin(*turn), (numbers, wanted))


def _thresholds(ranking: Ranking, kept: Count, together: bool) -> Thresholds:
    """The thresholds of all slices: a search over keys, then one over tied units.

    It is one loop, run twice: XLA takes as long for a second one.

    Args:
      ranking: the leaves.
      kept: how many units to keep, [groups].
      together: whether all slices are one group.
    """
    control = ranking.control
    slices = (ranking.slices,)
    kept = jax.tree.map(lambda numbers: jnp.broadcast_to(numbers, slices), kept)
    top = ranking.unreached + 1  # so that `low` can be one that no unit reaches
    sizes = jnp.asarray(ranking.slice_sizes)
    nowhere = jnp.zeros_like(top)
    start = Bracket(nowhere, jnp.asarray(top), sizes, jnp.zeros_like(sizes))
    guess = guess_thresholds(ranking, kept, Groups(ranking.slices, together), top)
    likely = Probes(*(jnp.asarray(ranking.keys_of(w)) for w in LIKELY_MAGNITUDES))
    by_keys = around(guess, start) if guess else thirds_then_line(top >> 8, likely)

    def search_once(turn: Any, found: _Found) -> _Found:
        is_last = turn == 1

        def count(probes: jax.Array) -> jax.Array:
            return control.cond(
                is_last,
                lambda: ranking.count_kept(Thresholds(found.above, probes)),
                lambda: ranking.count_reaching(probes),
            )

        def policy(state: State) -> Probes:
            return choose(is_last, along_line(state), by_keys(state))

        together_now = together and jnp.logical_not(is_last)
        groups = Groups(ranking.slices, together_now)
        bracket = search(
            count, found.bracket, found.wanted, groups, policy, control=control
        )
        return next_search(is_last, found._replace(bracket=bracket))

    @control.compiled
    def next_search(is_last: Any, found: _Found) -> _Found:
        ties = _ties(found.bracket, kept, Groups(ranking.slices, together), sizes)
        return jax.tree.map(lambda a, b: jnp.where(is_last, a, b), found, ties)

    first = _Found(nowhere, start, kept)
    found = control.fori_loop(0, 2, search_once, first)
    return Thresholds(found.above, found.bracket.low)


class _Found(NamedTuple):
    """What is known of every slice, [slices], and what is searched next.

    Attributes:
      above: as of `Thresholds`, once keys are searched.
      bracket: where the threshold lies, of keys or of reversed indices.
      wanted: how many units reach it.
    """

    above: jax.Array
    bracket: Bracket
    wanted: Count


def _ties(keys: Bracket, kept: Count, groups: Groups, sizes: jax.Array) -> _Found:
    """The search over the indices of tied units, once keys are searched.

    Args:
      keys: the last bracket of keys.
      kept: how many units to keep of each slice's group.
      groups: how slices form groups.
      sizes: the number of units in each slice.
    """
    # Units of key 0 are pruned already, so it does not matter which of them stay.
    is_exact = groups.total(keys.at_low).equals(kept) | (keys.low == 0)
    wanted = kept
    if groups.together:
        share = _share_in_order(
            kept - groups.total(keys.at_high), keys.at_low - keys.at_high
        )
        wanted = Count.of_uint32(keys.at_high + share)
    no_tie = sizes.astype(keys.low.dtype)
    bracket = keys._replace(
        low=jnp.where(is_exact, no_tie, 0),
        high=no_tie + 1,
        at_high=jnp.where(is_exact, keys.at_low, keys.at_high),
    )
    return _Found(
        above=jnp.where(is_exact, keys.low, keys.high),
        bracket=bracket,
        wanted=select(is_exact, Count.of_uint32(keys.at_low), wanted),
    )


def _share_in_order(wanted: Count, ties: jax.Array) -> jax.Array:
    """How many of its ties each slice keeps, earlier slices first: uint32 [slices]."""
    own = Count.of_uint32(ties)
    before = cumulative_sum(ties) - own
    return minimum(wanted - minimum(before, wanted), own).low
