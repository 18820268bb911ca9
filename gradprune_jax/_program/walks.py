"""Walks: over the steps of a program, to find units, zeros and needs, and to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.tracing import Program, Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros


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
        for result, axes in zip(step.results, results, strict=True):
            analysis.producers[result] = step
            analysis.axes[result] = _fix_single(result, axes, step, analysis)


def find_zeros(program: Program, inputs: Sequence[Zeros], analysis: Analysis) -> None:
    """Finds where every variable is zero, from where the inputs are."""
    analysis.zeros.update(zip(program.inputs, inputs, strict=True))
    for variable, value in program.constants:
        analysis.zeros[variable] = analysis.zeros_of(variable, value)
    for step in program.steps:
        rule = analysis.rule_of(step)
        results = rule.zeros(step, analysis)
        analysis.zeros.update(zip(step.results, results, strict=True))
        alike = rule.alike(step, analysis)
        if alike is not None:
            analysis.alike[step.results[0]] = alike


def find_needs(program: Program, analysis: Analysis) -> None:
    """Finds which units the sums need, from the outputs back to the inputs."""
    for step in reversed(program.steps):
        analysis.rule_of(step).needs(step, analysis)


def run(program: Program, inputs: Sequence[Any], cut: Cut) -> list[Any]:
    """Computes the outputs from inputs that were cut."""
    values = dict(zip(program.inputs, inputs, strict=True))
    cut = Cut(cut.analysis, values)
    for variable, value in program.constants:
        values[variable] = cut.array(variable, value)
    for step in program.steps:
        operands = [values[operand] for operand in step.operands]
        results = cut.analysis.rule_of(step).replay(step, operands, cut)
        values.update(zip(step.results, results, strict=True))
    return [values[output] for output in program.outputs]


def _fix_single(
    variable: int, axes: Sequence[Axis], step: Step, analysis: Analysis
) -> list[Axis]:
    """The axes of a variable, those of one index fixed.

    Such an index was picked out of many, and its axis may be dropped or repeated later,
    where nobody would see any more that a value depends on it.
    """
    kept: list[Axis] = []
    for axis, size in zip(axes, analysis.shape(variable), strict=True):
        is_single = isinstance(size, int) and size == 1
        if is_single:
            name = step.primitive.name
            analysis.fix(axis, f"one index alone, {name}, {step.source}")
        kept.append(None if is_single else axis)
    return kept
