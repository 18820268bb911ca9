"""What a rule of a primitive says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros


class PrimitiveRule:
    """How the axes of a primitive's operands and results hang together.

    This one is the rule of what is unknown: nothing it reads or writes is ever cut. A
    rule of one's own writes some or all of the methods.

    Examples:
      A primitive that divides by the largest element along the last axis.

      >>> class Scaled(PrimitiveRule):
      ...     def axes(self, step, analysis):
      ...         *others, last = analysis.axes[step.operands[0]]
      ...         analysis.fix(last, f"scaled, {step.source}")  # its place matters
      ...         return [[*others, None]]
      ...
      ...     def zeros(self, step, analysis):
      ...         return [analysis.zeros[step.operands[0]]]
    """

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Joins the axes that must be cut alike, and returns those of each result.

        Args:
          step: the operation.
          analysis: its `axes` has those of every operand; `join` cuts two alike, `fix`
            keeps one as it is.

        Returns:
          For each result, for each axis its units; None for an axis that is fixed.
        """
        name = step.primitive.name
        analysis.unknown.setdefault(name, step.source)
        for operand in step.operands:
            analysis.fix_variable(operand, f"{name}, which has no rule, {step.source}")
        return [[None] * len(analysis.shape(result)) for result in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Says what of each result is zero.

        Args:
          step: the operation.
          analysis: its `zeros` has those of every operand.

        Returns:
          The zeros of each result.
        """
        return [Zeros.of(False, analysis.shape(result)) for result in step.results]

    def needs(self, step: Step, analysis: Analysis) -> None:
        """Keeps the terms of its sums; most primitives sum nothing.

        Args:
          step: the operation.
          analysis: its `needs` keeps the terms that are not zero, if `is_live` is true
            of the result.
        """

    def alike(self, step: Step, analysis: Analysis) -> Sequence[np.ndarray] | None:
        """Says where the result is what it would be if all along an axis were zero.

        A rule that says so has the methods `axis_of` and `fill` too, as `Elementwise`.

        Args:
          step: the operation.
          analysis: its `alike` and `zeros` have those of the operands.

        Returns:
          For each axis of the one result bool [size]; None if nothing is known.
        """
        del step, analysis
        return None

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Computes the results from operands that were cut.

        Args:
          step: the operation.
          operands: their smaller values.
          cut: `shape` has the shape that a variable has after the cut.

        Returns:
          The smaller results.
        """
        del cut
        return bind(step, operands)


def bind(step: Step, operands: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """Runs a primitive, some of its parameters changed.

    Args:
      step: the operation.
      operands: its operands.
      **changed: parameters that have other values on smaller arrays, such as a shape.

    Returns:
      Its results, a sequence also where there is one alone.
    """
    found = step.primitive.get_bind_params({**step.params, **changed})
    # JAX before 0.10 returns the functions of a call apart.
    functions, params = found if isinstance(found, tuple) else ((), found)
    results = step.primitive.bind(*functions, *operands, **params)
    return results if step.primitive.multiple_results else [results]
