"""Allocation: how a rule's sparsity is shared out among its leaves, as kept counts."""

from __future__ import annotations

import fractions
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gradprune_jax import _arithmetic as arithmetic
from gradprune_jax._arithmetic import Count
from gradprune_jax._checks import is_traced
from gradprune_jax._rules import Allocation

# Flat indices, and thresholds above them, are uint32.
LARGEST_LEAF = 2**32 - 2


class Budget(NamedTuple):
    """How many units stay.

    Attributes:
      kept: the kept units of each group.
      together: whether all segments (leaves, or slices of stacked leaves) are one
        group with one threshold; else each is a group of its own.
    """

    kept: Count
    together: bool


def allocate(
    allocation: Allocation, sizes: Sequence[int], sparsity: jax.Array
) -> Budget:
    r"""The budget of a rule at a sparsity.

    Uniform allocation keeps :math:`n - \mathrm{round}(s n)` units of every segment;
    global allocation keeps that many of all segments together, whichever they are in.

    Args:
      allocation: ``"uniform"`` or ``"global"``.
      sizes: the number of units of each segment.
      sparsity: float32 scalar, the rule's sparsity s.

    Returns:
      The budget.

    Raises:
      ValueError: if the units are too many to be counted.
    """
    together = allocation == "global"
    groups = [sum(sizes)] if together else list(sizes)
    if max(sizes, default=0) > LARGEST_LEAF:
        raise ValueError(
            f"a leaf has {max(sizes)} weights that are ranked together; at most "
            f"{LARGEST_LEAF} can be. Split it, or give its stack_axis."
        )
    if max(groups, default=0) > arithmetic.LARGEST_COUNT:
        raise ValueError(
            f"{max(groups)} weights are ranked together; at most "
            f"{arithmetic.LARGEST_COUNT} can be. Use several rules."
        )
    return Budget(arithmetic.kept_count(groups, sparsity), together)


def floors(min_density: Any, sizes: Sequence[int]) -> Count:
    r"""The units that each segment keeps in any case: :math:`\lceil d n \rceil`."""
    if is_traced(min_density):
        return arithmetic.ceiling_count(sizes, min_density)
    return arithmetic.as_count([least_units(size, min_density) for size in sizes])


def kept_units(size: int, sparsity: float) -> int:
    r"""The kept count of one group as a Python integer: :math:`n - round(s n)`.

    The same numbers as :func:`allocate`, for plans made before any array exists.

    Example:
      >>> kept_units(1_000, 0.9)
      100
    """
    exact = fractions.Fraction(float(np.float32(sparsity)))
    least = min(size, 1) if exact < 1 else 0
    return max(size - round(size * exact), least)  # Python rounds halves to even


def least_units(size: int, min_density: Any) -> int:
    """The floor of one segment as a Python integer.

    The density is the decimal number that it prints as, so that 0.1 of 1,000 is 100,
    although the float nearest to 0.1 is larger.

    Example:
      >>> least_units(1_000, 0.1), least_units(7, 0.1)
      (100, 1)
    """
    return math.ceil(size * fractions.Fraction(str(np.asarray(min_density)[()])))
