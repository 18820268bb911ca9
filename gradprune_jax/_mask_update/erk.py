"""Erdos-Renyi-kernel allocation: small and narrow layers stay denser than others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update.rounding import kept_count, rounded_product
from gradprune_jax._mask_update.slices import Slice
from gradprune_jax._schedules import SparsitySchedule, is_concrete
from gradprune_jax._top_k import Count, minimum


def erk_densities(slices: Sequence[Slice], density: Any, most: Any = 1.0) -> Any:
    r"""Erdos-Renyi-kernel densities: higher for small and for narrow layers.

    $$
    d_l = \min\Big(d_{max}, \epsilon
    \frac{\sum_i \mathrm{shape}_{l, i}}{\prod_i \mathrm{shape}_{l, i}}\Big),
    \qquad \sum_l d_l n_l = d \sum_l n_l
    $$

    Layers whose density would exceed the most are set to it, those of the largest
    ratio first, until the $\epsilon$ of the others holds for all of them.

    Args:
      slices: the layers; n is the number of their units.
      density: d, the fraction of all units that is kept; traced or not.
      most: the largest density of a layer; traced or not.

    Returns:
      float64 [layers] for numbers, float32 for tracers.

    Examples:
      >>> layers = [Slice(100, (10, 10)), Slice(10_000, (100, 100))]
      >>> print(erk_densities(layers, density=0.1))
      [0.91818182 0.09181818]

    References:
      Evci et al., [Rigging the lottery](https://arxiv.org/abs/1911.11134), 2020,
      section 3.
    """
    sizes = np.array([each.units for each in slices], float)
    sums = np.array([sum(each.shape) for each in slices], float)
    weights = np.array([math.prod(each.shape) for each in slices], float)
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


def erk_kept(
    schedule: SparsitySchedule, slices: Sequence[Slice], progress: Any
) -> Count:
    """What each slice keeps on its way to its own density.

    Every slice goes from the initial sparsity to its own final one along the curve of
    the schedule. Traced sparsities are computed with in float32, on the device: a slice
    may then keep one unit more or less than with the same numbers known before.

    Args:
      schedule: the schedule.
      slices: the slices.
      progress: float32 scalar in [0, 1], how much of the way is done.

    Returns:
      The kept units, [slices].
    """
    sizes = [each.units for each in slices]
    initial: Any
    density: Any
    if is_concrete(schedule):
        ends = (schedule.initial_sparsity, schedule.final_sparsity)
        initial, final = (np.float32(sparsity) for sparsity in ends)
        # No layer may end denser than all begin, for masks never grow.
        density = 1 - max(float(initial), float(final))
        densities = erk_densities(slices, density, 1 - float(initial))
        least = int(final < 1)
        last = Count.of(
            [
                max(round(float(own) * size), min(size, least))
                for own, size in zip(densities, sizes, strict=True)
            ]
        )
    else:
        initial = jnp.float32(schedule.initial_sparsity)
        most = 1 - schedule.initial_sparsity
        density = jnp.minimum(1 - schedule.final_sparsity, most)
        densities = erk_densities(slices, density, most)
        last = kept_count(sizes, 1 - densities)
    first = kept_count(sizes, initial)
    return first - rounded_product(first - minimum(last, first), progress)
