"""Allocation: how a rule's sparsity is shared out among its leaves, as kept counts."""

from __future__ import annotations

import fractions
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update import rounding
from gradprune_jax._mask_update.floors import channels_total, least_units
from gradprune_jax._mask_update.slices import Segment
from gradprune_jax._rules.rule import Rule
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._structures import NM
from gradprune_jax._top_k.counts import LARGEST_COUNT, Count, minimum

# Flat indices, and thresholds above them, are uint32.
LARGEST_LEAF = 2**32 - 2


class Budget(NamedTuple):
    """How many units stay.

    Attributes:
      kept: the kept units of each group.
      together: whether all segments are one group with one threshold; else each is a
        group of its own.
    """

    kept: Count
    together: bool


def allocate(rule: Rule, segments: Sequence[Segment], step: jax.Array) -> Budget:
    r"""The budget of a rule at a step.

    Uniform allocation keeps $n - \mathrm{round}(s n)$ units of every segment;
    global allocation keeps that many of all segments together, whichever they are in.
    Under `"erk"` every segment goes from the schedule's initial sparsity to its own
    final one (`erk_densities`) along the schedule's curve.

    Args:
      rule: the rule, with a schedule.
      segments: its leaves, or the slices of all its leaves.
      step: integer scalar, the step of the schedule.

    Returns:
      The budget.

    Raises:
      ValueError: if the units are too many to be counted.
    """
    schedule: Any = rule.schedule
    together = rule.allocation == "global"
    sizes = [segment.units for segment in segments]
    groups = [sum(sizes)] if together else sizes
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
    if rule.allocation == "erk":
        return Budget(_erk_kept(schedule, segments, step), together)
    return Budget(rounding.kept_count(groups, schedule.sparsity(step)), together)


def kept_units(size: int, sparsity: float) -> int:
    r"""The kept count of one group as a Python integer: $n - round(s n)$.

    Examples:
      >>> kept_units(1_000, 0.9)
      100
    """
    exact = fractions.Fraction(float(np.float32(sparsity)))
    least = min(size, 1) if exact < 1 else 0
    return max(size - round(size * exact), least)  # Python rounds halves to even


def erk_densities(segments: Sequence[Segment], density: Any, most: Any = 1.0) -> Any:
    r"""Erdos-Renyi-kernel densities: higher for small and for narrow layers.

    $$
    d_l = \min\Big(d_{max}, \epsilon
    \frac{\sum_i \mathrm{shape}_{l, i}}{\prod_i \mathrm{shape}_{l, i}}\Big),
    \qquad \sum_l d_l n_l = d \sum_l n_l
    $$

    Layers whose density would exceed the most are set to it, those of the largest
    ratio first, until the $\epsilon$ of the others holds for all of them.

    Args:
      segments: the layers; n is the number of their units.
      density: d, the fraction of all units that is kept; traced or not.
      most: the largest density of a layer; traced or not.

    Returns:
      float64 [layers] for numbers, float32 for tracers.

    Examples:
      >>> layers = [Segment(100, (10, 10)), Segment(10_000, (100, 100))]
      >>> print(erk_densities(layers, density=0.1))
      [0.91818182 0.09181818]

    References:
      Evci et al., [Rigging the lottery](https://arxiv.org/abs/1911.11134), 2020,
      section 3.
    """
    sizes = np.array([segment.units for segment in segments], float)
    sums = np.array([sum(segment.shape) for segment in segments], float)
    weights = np.array([math.prod(segment.shape) for segment in segments], float)
    ratios = sums / np.maximum(weights, 1)
    xp: Any = np
    if is_traced(density) or is_traced(most):  # of any dtype
        xp = jnp
        density, most = (jnp.asarray(x).astype(jnp.float32) for x in (density, most))
        sizes, ratios = sizes.astype(np.float32), ratios.astype(np.float32)
    order = np.argsort(-ratios, kind="stable")
    order = order[sizes[order] > 0]
    if not len(order):
        return np.zeros(len(sizes))
    # With the m layers of largest ratio at the most, for m = 0, 1, ...
    capped = np.cumsum(sizes[order]) - sizes[order]
    shared = np.cumsum((sizes * ratios)[order][::-1])[::-1]
    scales = (density * sizes.sum() - most * capped) / np.maximum(shared, 1e-30)
    holds = scales * ratios[order] <= most
    scaled = xp.minimum(most, scales[xp.argmax(holds)] * ratios)
    return xp.clip(xp.where(xp.any(holds), scaled, most), 0.0, 1.0)


def final_units(rule: Rule, segments: Sequence[Segment]) -> tuple[int, ...] | None:
    """The units that each segment keeps in the end, as Python integers.

    The same numbers as `allocate`, for plans made before any array exists.

    Args:
      rule: the rule, with a concrete schedule.
      segments: its leaves, or the slices of all its leaves.

    Returns:
      One number a segment; None under global allocation, where weights decide.

    Examples:
      >>> from gradprune_jax import polynomial_schedule
      >>> rule = Rule(polynomial_schedule(0.9, 0, 100), allocation="erk")
      >>> final_units(rule, [Segment(100, (10, 10)), Segment(10_000, (100, 100))])
      (92, 918)
    """
    schedule: Any = rule.schedule
    if rule.allocation == "global":
        return None
    if isinstance(rule.structure, NM):
        pattern = rule.structure
        return tuple(segment.units // pattern.of * pattern.keep for segment in segments)
    if rule.allocation == "erk":
        kept = _erk_final(schedule, segments)
    else:
        highest = schedule.highest_sparsity
        kept = tuple(kept_units(segment.units, highest) for segment in segments)
    least = [channels_total(segment, rule.min_per_channel) for segment in segments]
    return tuple(map(max, kept, least))


def final_total(rule: Rule, segments: Sequence[Segment]) -> int:
    """The units that all segments together keep in the end."""
    schedule: Any = rule.schedule
    each = final_units(rule, segments)
    if each is not None:
        return sum(each)
    units = sum(segment.units for segment in segments)
    least = sum(
        max(
            least_units(segment.units, rule.min_density),
            channels_total(segment, rule.min_per_channel),
        )
        for segment in segments
    )
    return max(kept_units(units, schedule.highest_sparsity), least)


def _erk_final(
    schedule: SparsitySchedule, segments: Sequence[Segment]
) -> tuple[int, ...]:
    """The units that each segment keeps in the end under ERK (concrete schedules)."""
    initial, final = (
        float(np.float32(s))
        for s in (schedule.initial_sparsity, schedule.final_sparsity)
    )
    # No layer may end denser than all begin, for masks never grow.
    densities = erk_densities(segments, 1 - max(initial, final), 1 - initial)
    return tuple(
        min(
            max(round(float(density) * segment.units), min(segment.units, final < 1)),
            kept_units(segment.units, initial),
        )
        for density, segment in zip(densities, segments, strict=True)
    )


def _erk_kept(
    schedule: SparsitySchedule, segments: Sequence[Segment], step: jax.Array
) -> Count:
    """What each segment keeps at a step on its way to its ERK density.

    Traced sparsities are computed with in float32, on the device: a segment may then
    keep one unit more or less than with the same numbers known before.
    """
    sizes = [segment.units for segment in segments]
    initial = rounding.kept_count(sizes, jnp.float32(schedule.initial_sparsity))
    if schedule.is_concrete:
        final = Count.of(_erk_final(schedule, segments))
    else:
        most = 1 - schedule.initial_sparsity
        density = jnp.minimum(1 - schedule.final_sparsity, most)
        densities = erk_densities(segments, density, most)
        final = minimum(rounding.kept_count(sizes, 1 - densities), initial)
    pruned = initial - final
    so_far = rounding.rounded_product(pruned, schedule.progress(step))
    return initial - so_far
