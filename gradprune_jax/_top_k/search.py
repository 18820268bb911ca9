r"""Search: the largest thresholds that a wanted number of units reach, by counting.

The k-th largest key of a group is the largest threshold that k keys reach,

$$
t = \max \{ v : |\{ i : key_i \ge v \}| \ge k \},
$$

and since this count falls as v rises, a bracket around t can be narrowed. At all times
`count(low) >= k > count(high)`, so `low <= t < high`. A pass counts two probes strictly
inside the bracket, in one read of the data, and keeps the piece in which t lies. The
search ends once `count(low) == k`, for then the units that reach low are the answer, or
at `high == low + 1`, for then low is t.

This alone makes the answer exact. Where the probes lie decides only how many passes it
takes, and is a policy that the caller gives (`policies`). Whatever the policy, the
bracket is cut in thirds where two passes in a row did not halve the number of units in
it, and where it would become wider than a bound.

The bound w starts at the first bracket's width, and from the fifth pass on every pass
cuts it to $\lceil w / 3 \rceil$. Thirds of a bracket within w leave at most
$\lceil w / 3 \rceil$ of it, and a bracket that is already within that stays so wherever
the probes lie. So there are at most $4 + \lceil \log_3 w \rceil$ passes: 24 for keys of
32 bits, 14 for 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._top_k.control import COMPILED, ControlFlow
from gradprune_jax._top_k.counts import Count, select, total

# Passes before the bound on a bracket's width begins to shrink.
FREE_PASSES = 4
# After so many passes in a row that did not help, the bracket is cut in thirds.
PATIENCE = 2


class Groups(NamedTuple):
    """How slices form groups.

    Attributes:
      slices: the number of slices.
      together: whether all slices are one group; else each is a group of its own. May
        be traced.
    """

    slices: int
    together: Any

    def total(self, per_slice: jax.Array) -> Count:
        """The units of each slice's group, from those of each slice: [slices]."""
        apart = Count.of_uint32(per_slice)
        if self.together is False:
            return apart
        add_up = total(apart)
        together = jax.tree.map(lambda x: jnp.broadcast_to(x, per_slice.shape), add_up)
        return (
            together
            if self.together is True
            else select(self.together, together, apart)
        )


class Probes(NamedTuple):
    """Two thresholds for each slice, unsigned [slices]; `low <= high`."""

    low: jax.Array
    high: jax.Array


class Bracket(NamedTuple):
    """Where the wanted threshold of each slice lies: in `[low, high)`.

    Slices of one group have the same.

    Attributes:
      low: unsigned [slices]; at least the wanted number of units reach it.
      high: unsigned [slices]; fewer reach it.
      at_low: how many units reach `low`, uint32 [slices].
      at_high: how many units reach `high`, uint32 [slices].
    """

    low: jax.Array
    high: jax.Array
    at_low: jax.Array
    at_high: jax.Array

    @property
    def width(self) -> jax.Array:
        """How many thresholds the bracket holds."""
        return self.high - self.low

    def thirds(self) -> Probes:
        """Probes that leave a third of the bracket, rounded up, on any side."""
        third = _third(self.width)
        return Probes(self.low + third, self.high - third)

    def clip(self, probes: Probes) -> Probes:
        """Probes strictly inside the bracket, and apart where there is room."""
        low, high, *_ = self
        first = jnp.clip(probes.low, low + 1, high - 1)
        lowest = jnp.minimum(first + 1, high - 1)
        return Probes(first, jnp.clip(probes.high, lowest, high - 1))


class State(NamedTuple):
    """What a search knows after so many passes.

    Attributes:
      bracket: where the thresholds lie.
      above: how many units more than wanted reach `low`, float32 [slices].
      below: how many units fewer than wanted reach `high`, float32 [slices].
      stalled: how many passes in a row did not halve the number of units in the
        bracket, int32 [slices].
      bound: no bracket is wider; unsigned [slices].
      passes: how many passes were made, int32 scalar.
    """

    bracket: Bracket
    above: jax.Array
    below: jax.Array
    stalled: jax.Array
    bound: jax.Array
    passes: jax.Array

    @property
    def inside(self) -> jax.Array:
        """How many units lie in the bracket, float32 [slices]."""
        return self.above + self.below


def search(
    count: Callable[[jax.Array], jax.Array],
    start: Bracket,
    wanted: Count,
    groups: Groups,
    policy: Callable[[State], Probes],
    control: ControlFlow = COMPILED,
) -> Bracket:
    """Narrows brackets until each holds one threshold, or its `low` is the answer.

    Args:
      count: how many units of each slice reach two probes, from unsigned [2, slices]
        to uint32 of that shape.
      start: the first brackets.
      wanted: how many units, [slices].
      groups: how slices form groups.
      policy: where to probe next.
      control: the loop.

    Returns:
      The last brackets.
    """

    def distances(bracket: Bracket) -> tuple[jax.Array, jax.Array]:
        above = groups.total(bracket.at_low) - wanted
        below = wanted - groups.total(bracket.at_high)
        return above.as_float(), below.as_float()

    def is_open(state: State) -> jax.Array:
        return (state.bracket.width > 1) & (state.above != 0)

    def cut(
        bracket: Bracket, threshold: jax.Array, reached: jax.Array, active: jax.Array
    ) -> Bracket:
        """The side of a threshold on which the wanted one lies."""
        suffices = groups.total(reached) >= wanted
        raises = active & suffices
        # Of two probes that too few units reach, the lower one stays the end.
        lowers = active & ~suffices & (threshold < bracket.high)
        return Bracket(
            low=jnp.where(raises, threshold, bracket.low),
            high=jnp.where(lowers, threshold, bracket.high),
            at_low=jnp.where(raises, reached, bracket.at_low),
            at_high=jnp.where(lowers, reached, bracket.at_high),
        )

    @control.compiled
    def propose(state: State) -> tuple[Probes, jax.Array]:
        bracket = state.bracket
        is_free = state.passes < FREE_PASSES
        bound = jnp.where(is_free, state.bound, _third(state.bound))
        in_thirds = (bracket.width > bound) | (state.stalled >= PATIENCE)
        return bracket.clip(choose(in_thirds, bracket.thirds(), policy(state))), bound

    @control.compiled
    def advance(
        state: State, probes: Probes, bound: jax.Array, counts: jax.Array
    ) -> State:
        bracket, active = state.bracket, is_open(state)
        for threshold, reached in zip(probes, counts, strict=True):  # the lower first
            bracket = cut(bracket, threshold, reached, active)
        new = State(
            bracket, *distances(bracket), state.stalled, bound, state.passes + 1
        )
        helped = 2 * new.inside <= state.inside
        return new._replace(stalled=jnp.where(helped, 0, state.stalled + 1))

    def narrow(state: State) -> State:
        probes, bound = propose(state)
        return advance(state, probes, bound, count(jnp.stack(probes)))

    @control.compiled
    def first(bracket: Bracket) -> State:
        above, below = distances(bracket)
        stalled = jnp.zeros_like(above, jnp.int32)
        return State(bracket, above, below, stalled, bracket.width, jnp.int32(0))

    return control.while_loop(
        lambda state: jnp.any(is_open(state)), narrow, first(start)
    ).bracket


def choose(condition: jax.Array, probes: Probes, others: Probes) -> Probes:
    """The probes where the condition holds, else the others."""
    return Probes(
        jnp.where(condition, probes.low, others.low),
        jnp.where(condition, probes.high, others.high),
    )


def _third(width: jax.Array) -> jax.Array:
    """A third, rounded up."""
    return width // 3 + (width % 3 != 0).astype(width.dtype)
