r"""Policies: where a search probes next.

Units between the ends of a bracket are taken to lie evenly: on a straight line through
the counts at its ends. Of M units in the bracket a share p lies above the wanted
threshold, and they scatter about the line by the binomial
$\sigma = \sqrt{M p (1 - p)}$. So probes at the ranks $k \pm d$, with d a little below
$\sigma$, leave about $\sqrt M$ of M units. Where that leaves more than half of them, d
is four times as large in the next pass.

Keys spread over many powers of two are on no such line. So far from the end a search
over keys is guided by a guess, or cuts its bracket in thirds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.search import Bracket, Probes, State, choose

Policy = Callable[[State], Probes]

# How much further out the probes go after a pass that did not help.
WIDENING = 4


def along_line(state: State) -> Probes:
    """Probes at the ranks k - d and k + d of a line through the counts at the ends."""
    low, width = state.bracket.low, state.bracket.width.astype(jnp.float32)
    units = jnp.maximum(state.inside, 1)  # none where a search is over
    deviation = jnp.sqrt(state.above * (state.below / units))
    reach = jnp.where(state.stalled > 0, jnp.float32(WIDENING), jnp.float32(1))
    distance = jnp.maximum(0.7 * deviation, 0.5) * reach

    def at(rank: jax.Array) -> jax.Array:
        """The threshold that `rank` units fewer reach than `low`, by the line."""
        # Below one by more than the rounding of the product, so within the width.
        fraction = jnp.minimum(rank / units, 1 - 2.0**-20)
        return low + (fraction * width).astype(low.dtype)

    # Half-way to an end at most: a probe beside it would split off next to nothing.
    return Probes(
        at(state.above - jnp.minimum(distance, 0.5 * state.above)),
        at(state.above + jnp.minimum(distance, 0.5 * state.below)),
    )


def thirds_then_line(width: Any, likely: Probes | None = None) -> Policy:
    """A policy: thirds while a bracket is wider than this, then along the line.

    Args:
      width: unsigned [slices].
      likely: two thresholds between which the wanted one often lies: the first probes.
        They cost a pass where it does not.
    """

    def probe(state: State) -> Probes:
        bracket = state.bracket
        probes = choose(bracket.width > width, bracket.thirds(), along_line(state))
        if likely is None:
            return probes
        shape = bracket.low.shape
        first = Probes(*(jnp.broadcast_to(each, shape) for each in likely))
        return choose(state.passes == 0, first, probes)

    return probe


def around(guess: Probes, start: Bracket) -> Policy:
    """A policy: around a guess until it has bounded the threshold, then along the line.

    A guess that misses is followed by probes further out, and then by thirds.

    Args:
      guess: two thresholds between which the wanted one is likely to lie.
      start: the first brackets of the search.
    """

    def probe(state: State) -> Probes:
        low, high, *_ = state.bracket
        is_bounded = (low > start.low) & (high < start.high)
        width = jnp.minimum(guess.high - guess.low, np.iinfo(low.dtype).max // 24)
        further = jnp.where(state.passes > 0, (WIDENING - 1) * width, 0)
        lower = jnp.where(guess.low > low + further, guess.low - further, low)
        # A threshold below the guess may be the lowest of all: that of a group with
        # fewer units that are not zero than are wanted.
        is_below = high <= guess.low
        near = Probes(
            jnp.where(is_below, low + 1, lower),
            jnp.where(is_below, lower, guess.high + further),
        )
        near = choose(state.passes > 1, state.bracket.thirds(), near)
        return choose(is_bounded, along_line(state), near)

    return probe
