"""Allocation: how a rule's sparsity is shared out among its leaves, as kept counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradprune_jax._checks import is_traced, may_be_nonzero
from gradprune_jax._mask_update.erk import erk_kept
from gradprune_jax._mask_update.floors import channel_floors, density_floors
from gradprune_jax._mask_update.rounding import kept_count, to_multiples
from gradprune_jax._mask_update.slices import Slice
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import extremes
from gradprune_jax._structures import NM, CoupledChannels
from gradprune_jax._top_k import LARGEST_COUNT, Count, maximum, minimum, total

# Flat indices, and thresholds above them, are uint32.
LARGEST_LEAF = 2**32 - 2


class Budget(NamedTuple):
    """How many units a mask update keeps.

    Attributes:
      kept: the kept units of each group, the floors included, [groups].
      together: whether all slices are one group with one threshold; else each is a
        group of its own.
      of_channels: the units that each output channel of a slice keeps in any case,
        [slices]; None without such a floor.
      of_slices: the units that each slice keeps in any case, [slices]; None without
        such a floor.
    """

    kept: Count
    together: bool
    of_channels: Count | None
    of_slices: Count | None


def allocate(
    rule: Rule, slices: Sequence[Slice], sparsity: Any, progress: Any
) -> Budget:
    r"""The budget of a rule at a sparsity of its schedule.

    Uniform allocation keeps $n - \mathrm{round}(s n)$ units of every slice. Global
    allocation keeps that many of all slices together, whichever they are in. Under
    `"erk"` every slice goes from the schedule's initial sparsity to its own final one
    along the schedule's curve.

    Args:
      rule: the rule, with a schedule; not one of N:M.
      slices: the slices of all its leaves.
      sparsity: float32 scalar, that of the schedule, traced or not.
      progress: float32 scalar in [0, 1], how much of the schedule's way is done; only
        `"erk"` needs it.

    Returns:
      The budget, of NumPy's arrays where nothing is traced.

    Raises:
      ValueError: if the units are too many to be counted.
    """
    sparsity, progress = _on_host(sparsity), _on_host(progress)
    schedule: Any = rule.schedule
    together = rule.allocation == "global"
    sizes = [each.units for each in slices]
    groups = [sum(sizes)] if together else sizes
    _check_sizes(sizes, groups)
    if rule.allocation == "erk":
        kept = erk_kept(schedule, slices, progress)
    else:
        kept = kept_count(groups, sparsity)
    of_channels = of_slices = least = None
    if may_be_nonzero(rule.min_per_channel):
        of_channels = channel_floors(rule.min_per_channel, slices)
        channels = np.array([each.output_channels for each in slices], np.uint32)
        least = Count.of_uint32(of_channels.low * channels)
    if together and may_be_nonzero(rule.min_density):
        floors = density_floors(rule.min_density, slices)
        least = of_slices = floors if least is None else maximum(floors, least)
    if least is not None:
        kept = maximum(kept, total(least) if together else least)
    if isinstance(rule.structure, CoupledChannels) and not together:
        kept = to_multiples(kept, sizes, rule.structure.round_to)
    return Budget(kept, together, of_channels, of_slices)


def kept_in_the_end(rule: Rule, slices: Sequence[Slice]) -> Any:
    """The units that each group keeps in the end, from sizes alone.

    Masks never grow, so it is the least that an update of the schedule keeps.

    Args:
      rule: the rule, with a concrete schedule.
      slices: the slices of all its leaves.

    Returns:
      Python integers, a NumPy array of objects: one a group. Under global allocation
      all slices are one group.

    Examples:
      >>> from gradprune_jax import polynomial_schedule
      >>> rule = Rule(polynomial_schedule(0.9, 0, 100), allocation="erk")
      >>> layers = [Slice(100, (10, 10)), Slice(10_000, (100, 100))]
      >>> print(kept_in_the_end(rule, layers))
      [92 918]
    """
    schedule: Any = rule.schedule
    if isinstance(rule.structure, NM):
        pattern = rule.structure
        kept = [each.units // pattern.of * pattern.keep for each in slices]
        return np.array(kept, object)
    at_peak, at_end = (
        allocate(rule, slices, *numbers).kept for numbers in extremes(schedule)
    )
    return minimum(at_peak, at_end).integers()


def _on_host(number: Any) -> Any:
    """A number that is known, for arithmetic that compiles nothing."""
    return number if number is None or is_traced(number) else np.asarray(number)


def _check_sizes(sizes: Sequence[int], groups: Sequence[int]) -> None:
    """Refuses more units than can be ranked or counted."""
    if max(sizes, default=0) > LARGEST_LEAF:
        raise ValueError(
            f"a leaf has {max(sizes)} weights or blocks that are ranked together; at "
            f"most {LARGEST_LEAF} can be. Split it, or give its stack_axis."
        )
    if max(groups, default=0) > LARGEST_COUNT:
        raise ValueError(
            f"{max(groups)} weights or blocks are ranked together; at most "
            f"{LARGEST_COUNT} can be. Use several rules."
        )
