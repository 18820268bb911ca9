r"""Selection: the exact k units of largest key, by counting.

The k-th largest key of a group is the largest threshold that k keys reach,

.. math:: t = \max \{ v : |\{ i : key_i \ge v \}| \ge k \},

and since this count falls as v rises, t is found by narrowing a bracket:

* invariant: ``count(low) >= k > count(high)``, so ``low <= t < high``;
* each pass counts two thresholds in one read of the data, a third of the way from
  either end, and keeps the third in which t lies: of a bracket of width w at most
  ``w - 2 * floor(w / 3)`` is left, so keys of 32 bits take at most 21 passes;
* it ends early once ``count(low) == k``: the units that reach low are the answer.

Otherwise more than k keys reach t, and those equal to t are tied: the lower flat index
wins. Which index is the last to stay is found by the same search, over reversed
indices. Among leaves that are ranked together the earlier leaf wins, so the counts of
the leaves say how many ties each of them keeps, and each searches its own indices.

Only counts leave a device, so the result is the same on every mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _arithmetic as arithmetic
from gradprune_jax import _counting as counting
from gradprune_jax._arithmetic import Count
from gradprune_jax._counting import Units
from gradprune_jax._structures import key_dtype, largest_key


class Bracket(NamedTuple):
    """Where the wanted thresholds lie, one a group: in ``[low, high)``.

    Attributes:
      low: unsigned [groups]; at least the wanted number of units reach it.
      high: unsigned [groups]; fewer reach it.
      at_low: how many units reach `low`.
    """

    low: jax.Array
    high: jax.Array
    at_low: Count


def top_k(
    units: Sequence[Units], kept: Count, *, together: bool = False
) -> list[jax.Array]:
    """Marks the `kept` units of largest key in every group.

    Args:
      units: the leaves; the slices of all of them, in order, are the segments.
      kept: how many units to keep, [groups].
      together: whether all segments are one group; else each is a group of its own.

    Returns:
      For each leaf, bool of its units' shape: exactly `kept` in every group, those
      that come first in a stable descending sort of the keys.
    """
    sizes = [leaf.slice_size for leaf in units for _ in range(leaf.slices)]

    def to_segments(per_group: jax.Array) -> jax.Array:
        shape = (*per_group.shape[:-1], len(sizes))
        return jnp.broadcast_to(per_group, shape) if together else per_group

    def to_groups(per_segment: jax.Array) -> Count:
        if not together:
            return Count(jnp.zeros_like(per_segment), per_segment)
        total = arithmetic.cumulative_sum(per_segment)
        return Count(total.high[..., -1:], total.low[..., -1:])

    tops = [_above_all_keys(leaf) for leaf in units for _ in range(leaf.slices)]
    bracket = _search(
        lambda probes: to_groups(
            counting.count_pairs(units, _reaches, to_segments(probes))
        ),
        wanted=kept,
        at_zero=arithmetic.as_count([sum(sizes)] if together else sizes),
        top=np.array(tops[:1] if together else tops, _threshold_dtype(units)),
    )
    exact = arithmetic.equal(bracket.at_low, kept)
    low = to_segments(bracket.low)

    def without_ties() -> tuple[jax.Array, jax.Array]:
        return low, jnp.zeros(len(sizes), jnp.uint32)

    def with_ties() -> tuple[jax.Array, jax.Array]:
        high = to_segments(jnp.where(exact, bracket.low, bracket.high))
        reach = counting.count_pairs(units, _reaches, jnp.stack([low, high]))
        at_low, at_high = reach[0], reach[1]
        wanted = kept
        if together:
            kept_ties = arithmetic.subtract(kept, to_groups(at_high))
            share = _share_in_order(kept_ties, at_low - at_high)
            wanted = _from_uint32(at_high + share)

        def count_kept(starts: jax.Array) -> Count:
            lows, highs = (jnp.broadcast_to(t, starts.shape) for t in (low, high))
            return _from_uint32(
                counting.count_pairs(units, _keeps, lows, highs, starts)
            )

        ties = _search(
            count_kept,
            wanted=wanted,
            at_zero=_from_uint32(at_low),
            top=np.array(sizes, np.uint32),
        )
        return high, ties.low

    high, start = jax.lax.cond(jnp.all(exact), without_ties, with_ties)
    return counting.mark(units, _keeps, low, high, start)


def _search(
    count: Callable[[jax.Array], Count],
    *,
    wanted: Count,
    at_zero: Count,
    top: np.ndarray,
) -> Bracket:
    """The largest thresholds in [0, top] that the wanted number of units reach.

    Args:
      count: how many units reach each of [2, groups] thresholds.
      wanted: how many units, [groups].
      at_zero: how many units there are: what `count` gives for threshold 0.
      top: unsigned [groups], thresholds that no unit reaches, or no unit that counts.

    Returns:
      The final bracket: `low` is the answer; either exactly the wanted number of units
      reach it, or ``high == low + 1``.
    """

    def unfinished(bracket: Bracket) -> jax.Array:
        found = arithmetic.equal(bracket.at_low, wanted)
        return ~found & (bracket.high - bracket.low > 1)

    def narrow(bracket: Bracket) -> Bracket:
        third = jnp.maximum((bracket.high - bracket.low) // 3, 1)
        probes = jnp.stack([bracket.low + third, bracket.high - third])
        counts = count(probes)
        active = unfinished(bracket)
        low, high, at_low = bracket
        for row in range(2):  # in ascending order, so that `low` only rises
            reached = Count(counts.high[row], counts.low[row])
            enough = arithmetic.at_least(reached, wanted)
            low = jnp.where(active & enough, probes[row], low)
            at_low = arithmetic.select(active & enough, reached, at_low)
            high = jnp.where(active & ~enough, jnp.minimum(high, probes[row]), high)
        return Bracket(low, high, at_low)

    # The threshold above the top stands for one that nothing can reach.
    start = Bracket(jnp.zeros_like(top), jnp.asarray(top + 1), at_zero)
    return jax.lax.while_loop(
        lambda bracket: jnp.any(unfinished(bracket)), narrow, start
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
    up_to = arithmetic.cumulative_sum(ties)
    own = _from_uint32(ties)
    before = arithmetic.subtract(up_to, own)
    left = arithmetic.subtract(wanted, arithmetic.minimum(before, wanted))
    return arithmetic.minimum(left, own).low


def _from_uint32(numbers: jax.Array) -> Count:
    return Count(jnp.zeros_like(numbers), numbers)


def _threshold_dtype(units: Sequence[Units]) -> np.dtype:
    """Unsigned integers that hold the keys of every leaf, 32 bits at least."""
    return np.result_type(np.uint32, *(key_dtype(leaf.dtype) for leaf in units))


def _above_all_keys(leaf: Units) -> int:
    """A threshold that no unit of the leaf reaches, not even those kept first."""
    return largest_key(leaf.dtype) + 2
