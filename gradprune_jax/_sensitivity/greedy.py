"""Greedy choice: of every parameter one of its choices, with the least rise in all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """One sparsity of one parameter: what it costs, and by how much the loss rises."""

    sparsity: float
    kept: int
    cost: int
    rise: float


def choose(layers: Sequence[Sequence[Choice]], most: int) -> list[Choice]:
    """Choose for every layer, so that the costs are at most so much in all.

    Steps are taken along the lower convex hulls of the layers, the cheapest first,
    until the budget is kept. What the last of them saved too much is given back.

    Args:
      layers: the choices of each; the cheapest ones of all keep the budget.
      most: what they may cost together.

    Examples:
      >>> dense = Choice(0.0, 9, 9, 0.0)
      >>> layers = [[dense, Choice(0.5, 5, 5, rise)] for rise in (1, 2)]
      >>> [each.sparsity for each in choose(layers, 14)]
      [0.5, 0.0]
    """
    return _give_back(layers, _greedy(layers, most), most)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of rise against saving, from the best that saves nothing.

    Along it each further weight that is saved costs more than the one before, so that
    steps may be taken in the order of what they cost.
    """
    most = max(each.cost for each in choices)
    hull = [min((c for c in choices if c.cost == most), key=lambda c: c.rise)]
    while True:
        here = hull[-1]
        further = [each for each in choices if each.cost < here.cost]
        if not further:
            return hull
        hull.append(min(further, key=lambda each: (_slope(here, each), each.cost)))


def _slope(one: Choice, other: Choice) -> float:
    """By how much the loss rises for each unit that is saved."""
    return (other.rise - one.rise) / (one.cost - other.cost)


def _greedy(layers: Sequence[Sequence[Choice]], most: int) -> list[Choice]:
    """Take steps along the hulls, the cheapest first, until the cost is low enough."""
    hulls = [_hull(layer) for layer in layers]
    chosen = [hull[0] for hull in hulls]
    steps = []
    for layer, hull in enumerate(hulls):
        slopes = itertools.starmap(_slope, itertools.pairwise(hull))
        # Rounding must not put a step before the one that it goes on from.
        rising = itertools.accumulate(slopes, max)
        steps += [(s, layer, i, hull[i + 1]) for i, s in enumerate(rising)]
    steps.sort()
    cost = sum(each.cost for each in chosen)
    for slope, layer, _, choice in steps:
        if cost <= most and slope >= 0:
            break  # what lowers the loss is pruned in any case
        cost += choice.cost - chosen[layer].cost
        chosen[layer] = choice
    return chosen


def _give_back(
    layers: Sequence[Sequence[Choice]],
    chosen: Sequence[Choice],
    most: int,
) -> list[Choice]:
    """Prune less where the budget has room for it, where the loss falls most first."""
    best = list(chosen)
    while True:
        room = most - sum(each.cost for each in best)
        better = [
            (other.rise - best[layer].rise, layer, other)
            for layer, choices in enumerate(layers)
            for other in choices
            if other.cost - best[layer].cost <= room and other.rise < best[layer].rise
        ]
        if not better:
            return best
        _, layer, choice = min(better)
        best[layer] = choice
