r"""Fills: what a sum adds at indices that are cut, where that is not zero.

A variance in two passes adds $(0 - \mu)^2$ at a channel that is zero. That is one
number for all such channels, so they can go if it is added as many times as there were.
What stands at such an index is found by running the steps that lead there once more,
with zeros in place of all that lies along the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.zeros import known_size


def alike_along(analysis: Analysis, variable: int, axis: int) -> np.ndarray:
    """Where a variable is what it would be if zeros were there, bool [size].

    Of a variable of which nothing is known but zeros, these.
    """
    alike = analysis.alike.get(variable)
    if alike is not None and alike[axis].any():
        return alike[axis]
    return analysis.zeros[variable].along[axis]


def alike_of_operands(
    step: Step, analysis: Analysis, axis_of: Callable[..., int | None]
) -> list[np.ndarray]:
    """Where every operand that lies along an axis is what zeros would make of it.

    Args:
      step: an operation of one result, each element of which depends on one index of
        each operand's axis alone.
      analysis: of the program.
      axis_of: which axis of an operand lies along one of the result, as of the rules.
    """
    (result,) = step.results
    found = []
    for axis, size in enumerate(analysis.shape(result)):
        can_be_cut = analysis.units.resolve(analysis.axes[result][axis]) is not None
        flags = np.full(known_size(size), can_be_cut)
        for operand in step.operands if can_be_cut else ():
            place = axis_of(step, analysis, operand, axis)
            if place is not None:
                flags = flags & alike_along(analysis, operand, place)
        found.append(flags)
    return found


def fillable(analysis: Analysis, variable: int, summed: Sequence[int]) -> int | None:
    """The axis of a sum along which zeros of the inputs add one number; None if none.

    There must be one such axis alone, or indices of two axes would be counted twice.
    """
    axes = [axis for axis in summed if _not_zero(analysis, variable, axis).any()]
    return axes[0] if len(axes) == 1 else None


def sum_of_cut(
    cut: Cut, variable: int, axis: int, summed: Sequence[int]
) -> jax.Array | None:
    """What the indices of an axis that are cut add to a sum; None if it is zero.

    Args:
      cut: what is cut, with the values of the program that runs.
      variable: what is summed.
      axis: the axis, as from `fillable`.
      summed: all axes that are summed over.
    """
    gone = cut.analysis.is_cut(cut.analysis.axes[variable][axis])
    times = int(np.sum(gone & _not_zero(cut.analysis, variable, axis)))
    if not times:
        return None
    fill = _fill(cut, variable, axis)
    total = jnp.sum(fill, tuple(summed), dtype=fill.dtype)
    return total * np.asarray(times, fill.dtype)


def _not_zero(analysis: Analysis, variable: int, axis: int) -> np.ndarray:
    """Where a variable is known by what it would be with zeros, and not zero itself."""
    zeros = analysis.zeros[variable].along[axis]
    return alike_along(analysis, variable, axis) & ~zeros


def _fill(cut: Cut, variable: int, axis: int) -> Any:
    """A variable as it would be with zeros along an axis, which has size 1."""
    analysis = cut.analysis
    alike = analysis.alike.get(variable)
    shape = list(cut.shape(variable))
    shape[axis] = 1
    if alike is None or not alike[axis].any():
        return jnp.zeros(shape, analysis.types[variable].dtype)
    step = analysis.producers[variable]
    rule = analysis.rule_of(step)
    operands = []
    for operand in step.operands:
        place = rule.axis_of(step, analysis, operand, axis)
        is_constant = place is None
        operands.append(
            cut.values[operand] if is_constant else _fill(cut, operand, place)
        )
    return rule.fill(step, operands, tuple(shape))
