"""What a rule of a primitive says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from gradprune_jax._program.analysis import Analysis, Zeros
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis


class PrimitiveRule:
    """How the axes of a primitive's operands and results hang together.

    This one is the rule of what is unknown: nothing it reads or writes is ever cut.
    """

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Joins the axes that must be cut alike, and returns those of each result."""
        name = step.primitive.name
        analysis.unknown.setdefault(name, step.source)
        for operand in step.operands:
            analysis.fix_variable(operand, f"{name}, which has no rule, {step.source}")
        return [[None] * len(analysis.shape(result)) for result in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Says what of each result is zero, and which units its sums need."""
        return [Zeros.of(False, analysis.shape(result)) for result in step.results]

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Computes the results from operands that were cut."""
        del cut
        return bind(step, operands)


def bind(step: Step, operands: Sequence[Any], **changed: Any) -> Sequence[Any]:
    """Runs a primitive, some of its parameters changed."""
    results = step.primitive.bind(*operands, **{**step.params, **changed})
    return results if step.primitive.multiple_results else [results]
