r"""Search: the largest thresholds that a wanted number of units reach, by counting.

The k-th largest key of a group is the largest threshold that k keys reach,

$$
t = \max \{ v : |\{ i : key_i \ge v \}| \ge k \},
$$

and since this count falls as v rises, a bracket around t is narrowed. Invariant:
`count(low) >= k > count(high)`, so `low <= t < high`. A pass counts two probes
strictly inside the bracket, in one read of the data, and keeps the piece in which t
lies. The search ends once `count(low) == k`, for then the units that reach low are
the answer, or at `high == low + 1`, for then low is t.

That much makes it exact. Where the probes lie decides only how many passes it takes:

* around a guess, at first, and at four times the distance as long as both of them lie
  on one side of t;
* then where a straight line through the counts at either end puts the ranks
  $k \pm d$. Units scatter about the line by the binomial
  $\sigma = \sqrt{M p (1 - p)}$, with M of them in the bracket and a share p of
  them above t, so with d a little below that a pass leaves about
  $\sqrt M$ of M units. Where it leaves more than half, d is four times as large
  in the next one;
* a third of the way from either end, where two passes in a row did not help.

Bound: from the fifth pass on no piece may be wider than the bound w, which starts at
the first bracket's width and is cut to $\lceil w / 3 \rceil$ by every pass. A
bracket within w that would leave more is cut in thirds, which leaves at most
$\lceil w / 3 \rceil$ of it; a bracket that is already within that stays so
wherever the probes lie. So there are at most $4 + \lceil \log_3 w \rceil$
passes: 24 for keys of 32 bits, 14 for 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.counts import Count, cumulative_sum

# Passes before the bound on a bracket's width begins to shrink.
FREE_PASSES = 4
# How much further out the probes go after a pass that did not help, and how far at
# most before the bracket is cut in thirds.
WIDENING = 4.0
WIDEST = WIDENING**2


class Groups(NamedTuple):
    """How segments (leaves, or slices of stacked leaves) form groups.

    Attributes:
      segments: the number of segments.
      together: whether all segments are one group with one threshold; else each is a
        group of its own.
    """

    segments: int
    together: bool

    def spread(self, per_group: jax.Array) -> jax.Array:
        """One number for each segment, from one for each group: [..., segments]."""
        shape = (*per_group.shape[:-1], self.segments)
        return jnp.broadcast_to(per_group, shape) if self.together else per_group

    def total(self, per_segment: jax.Array) -> Count:
        """The units of each group, from those of each segment: [..., groups]."""
        if not self.together:
            return Count.of_uint32(per_segment)
        total = cumulative_sum(per_segment)
        return Count(total.high[..., -1:], total.low[..., -1:])


class Bracket(NamedTuple):
    """Where the wanted thresholds lie, one a group: in `[low, high)`.

    Attributes:
      low: unsigned [..., groups]; at least the wanted number of units reach it.
      high: unsigned [..., groups]; fewer reach it.
      at_low: how many units reach `low`, uint32 [..., segments].
      at_high: how many units reach `high`, uint32 [..., segments].
    """

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array


class Guess(NamedTuple):
    """Two thresholds between which the wanted one is likely to lie, `low < high`."""

    low: jax.Array
    high: jax.Array


# Two ascending thresholds for each group.
Probes = tuple[jax.Array, jax.Array]


class _State(NamedTuple):
    """What the loop carries.

    Attributes:
      bracket: where the thresholds lie.
      above: how many units more than wanted reach `low`, float32 [..., groups].
      below: how many units fewer than wanted reach `high`, float32 [..., groups].
      reach: how far apart the probes are, as a multiple of the usual.
      bound: no bracket is wider; unsigned [..., groups].
      passes: how many were made.
    """

    bracket: Bracket
    above: jax.Array
    below: jax.Array
    reach: jax.Array
    bound: jax.Array
    passes: jax.Array


def search(
    count: Callable[[jax.Array], jax.Array],
    start: Bracket,
    wanted: Count,
    groups: Groups,
    *,
    guess: Guess | None = None,
    coarse_width: Any = None,
    enough: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Bracket:
    """Narrows brackets until each holds one threshold, or its `low` is the answer.

    Args:
      count: how many units of each segment reach two probes for each group, from
        unsigned [2, ..., segments] to uint32 of that shape.
      start: the first brackets, for which the invariant holds.
      wanted: how many units, [..., groups].
      groups: how segments form groups.
      guess: where to probe first; else the line through the ends decides at once.
      coarse_width: brackets wider than this are cut in thirds, where there is no guess
        and counts do not fall evenly.
      enough: whether a bracket is narrow enough, given how many units more than wanted
        reach its low end and how many fewer its high end. By default: exact.

    Returns:
      The last brackets.
    """
    if enough is None:
        enough = _is_exact

    def distances(bracket: Bracket) -> tuple[jax.Array, jax.Array]:
        at_low, at_high = groups.total(bracket.at_low), groups.total(bracket.at_high)
        above = at_low - wanted
        below = wanted - at_high
        return above.as_float(), below.as_float()

    def unfinished(state: _State) -> jax.Array:
        low, high, *_ = state.bracket
        return (high - low > 1) & ~enough(state.above, state.below)

    def narrow(state: _State) -> _State:
        low, high, at_low, at_high = state.bracket
        active = unfinished(state)
        next_bound = jnp.where(
            state.passes < FREE_PASSES, state.bound, _third(state.bound)
        )
        untouched = (low == start.low) | (high == start.high)
        in_thirds = (high - low > next_bound) | (state.reach >= WIDEST)
        probes = _probe_line(state)
        if guess is not None:
            probes = _select(untouched, _probe_guess(state, guess), probes)
        elif coarse_width is not None:
            in_thirds |= high - low > coarse_width
        probes = _select(in_thirds, _probe_thirds(state.bracket), probes)
        counts = count(groups.spread(jnp.stack(probes)))
        for probe, reached in zip(probes, counts, strict=True):  # ascending
            is_low = groups.total(reached) >= wanted
            raises, lowers = active & is_low, active & ~is_low & (probe < high)
            low = jnp.where(raises, probe, low)
            high = jnp.where(lowers, probe, high)
            at_low = jnp.where(groups.spread(raises), reached, at_low)
            at_high = jnp.where(groups.spread(lowers), reached, at_high)
        bracket = Bracket(low, high, at_low, at_high)
        above, below = distances(bracket)
        helped = 2 * (above + below) <= state.above + state.below
        if guess is not None:
            helped &= (low != start.low) & (high != start.high)
        reach = jnp.where(helped, jnp.float32(1), state.reach * WIDENING)
        return _State(bracket, above, below, reach, next_bound, state.passes + 1)

    above, below = distances(start)
    state = _State(
        start,
        above,
        below,
        reach=jnp.ones_like(above),
        bound=start.high - start.low,
        passes=jnp.int32(0),
    )
    return jax.lax.while_loop(
        lambda state: jnp.any(unfinished(state)), narrow, state
    ).bracket


def _is_exact(above: jax.Array, below: jax.Array) -> jax.Array:
    """Whether exactly the wanted units reach the low end of a bracket."""
    del below
    return above == 0


def _probe_line(state: _State) -> Probes:
    """Probes at the ranks k - d and k + d of a line through the counts at the ends."""
    low, high, *_ = state.bracket
    units = jnp.maximum(state.above + state.below, 1)  # none where a search is over
    deviation = jnp.sqrt(state.above * (state.below / units))
    distance = jnp.maximum(0.7 * deviation, 0.5) * state.reach
    width = (high - low).astype(jnp.float32)

    def at(rank: jax.Array) -> jax.Array:
        """The threshold on the line that so many units fewer than `low` reach."""
        # Below one by more than the rounding of the product, so within the width.
        fraction = jnp.minimum(rank / units, 1 - 2.0**-20)
        return low + (fraction * width).astype(low.dtype)

    # Half-way to an end at most: a probe beside it would split off next to nothing.
    first = at(state.above - jnp.minimum(distance, 0.5 * state.above))
    second = at(state.above + jnp.minimum(distance, 0.5 * state.below))
    return _inside(state.bracket, first, second)


def _probe_guess(state: _State, guess: Guess) -> Probes:
    """The guess, or probes further out by a multiple of its width.

    If the wanted threshold is below both, it may be the lowest of all: that of a group
    with too few units that are not zero.
    """
    low, high, *_ = state.bracket
    largest = np.iinfo(low.dtype).max // 8
    width = (guess.high - guess.low).astype(jnp.float32)
    reach = jnp.minimum((state.reach - 1) * width, np.float32(largest))
    reach = reach.astype(low.dtype)
    lower = jnp.where(guess.low > low + reach, guess.low - reach, low)
    is_below = high <= guess.low
    first = jnp.where(is_below, low + 1, lower)
    second = jnp.where(is_below, lower, guess.high + reach)
    return _inside(state.bracket, first, second)


def _probe_thirds(bracket: Bracket) -> Probes:
    """Probes that leave a third, rounded up, on any side."""
    third = _third(bracket.high - bracket.low)
    return _inside(bracket, bracket.low + third, bracket.high - third)


def _inside(bracket: Bracket, first: jax.Array, second: jax.Array) -> Probes:
    """Two ascending probes strictly inside a bracket, and apart where there is room."""
    low, high, *_ = bracket
    first = jnp.clip(first, low + 1, high - 1)
    return first, jnp.clip(second, jnp.minimum(first + 1, high - 1), high - 1)


def _select(condition: jax.Array, probes: Probes, others: Probes) -> Probes:
    """The probes where the condition holds, else the others."""
    return (
        jnp.where(condition, probes[0], others[0]),
        jnp.where(condition, probes[1], others[1]),
    )


def _third(width: jax.Array) -> jax.Array:
    """A third, rounded up."""
    return width // 3 + (width % 3 != 0).astype(width.dtype)
