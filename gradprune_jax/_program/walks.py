"""Walks: over the steps of a program, to find units, to find zeros, and to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradprune_jax._program.analysis import Analysis, Zeros
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.tracing import Program
from gradprune_jax._program.units import Axis


def find_axes(
    program: Program, inputs: Sequence[Sequence[Axis]], analysis: Analysis
) -> None:
    """Finds the units of every variable, from those of the inputs."""
    analysis.axes.update(zip(program.inputs, inputs, strict=True))
    for variable, value in program.constants:
        analysis.axes[variable] = analysis.new_axes(analysis.shape(variable))
        if not analysis.shape(variable):
            analysis.scalars[variable] = value
    for step in program.steps:
        results = analysis.rule_of(step).axes(step, analysis)
        analysis.axes.update(zip(step.results, results, strict=True))


def find_zeros(program: Program, inputs: Sequence[Zeros], analysis: Analysis) -> None:
    """Finds where every variable is zero, from where the inputs are."""
    analysis.zeros.update(zip(program.inputs, inputs, strict=True))
    for variable, value in program.constants:
        analysis.zeros[variable] = analysis.zeros_of(variable, value)
    for step in program.steps:
        results = analysis.rule_of(step).zeros(step, analysis)
        analysis.zeros.update(zip(step.results, results, strict=True))


def run(program: Program, inputs: Sequence[Any], cut: Cut) -> list[Any]:
    """Computes the outputs from inputs that were cut."""
    values = dict(zip(program.inputs, inputs, strict=True))
    for variable, value in program.constants:
        values[variable] = cut.array(variable, value)
    for step in program.steps:
        operands = [values[operand] for operand in step.operands]
        results = cut.analysis.rule_of(step).replay(step, operands, cut)
        values.update(zip(step.results, results, strict=True))
    return [values[output] for output in program.outputs]
