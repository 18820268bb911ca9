"""Primitives that make values out of nothing: positions and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis

SOURCES = (
    *("iota", "random_bits", "rng_bit_generator", "rng_uniform", "random_seed"),
    *("random_split", "random_fold_in", "random_wrap", "random_unwrap", "threefry2x32"),
)


class Source(PrimitiveRule):
    """Values that are made whole and then cut, so that those that stay are the same."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """New units; operands, such as random keys, are fixed."""
        for operand in step.operands:
            analysis.fix_variable(operand, f"{step.primitive.name}, {step.source}")
        return [analysis.new_axes(analysis.shape(result)) for result in step.results]

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Make all, and cut."""
        return [
            cut.array(result, value)
            for result, value in zip(step.results, bind(step, operands), strict=True)
        ]
