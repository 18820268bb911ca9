"""Dead code: the units of a traced function that no output needs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.rules import RULES, UNKNOWN, PrimitiveRule
from gradprune_jax._program.tracing import Program, Trace
from gradprune_jax._program.walks import find_axes, find_needs, find_zeros
from gradprune_jax._program.zeros import Zeros

# Rules of the user's own, by the names of primitives.
Rules = Mapping[str, PrimitiveRule]


def find_cut(
    traced: Trace, patterns: Sequence[np.ndarray | None], rules: Rules | None
) -> Analysis:
    """Analyses a traced function, and finds the units that no output needs.

    Args:
      traced: the function.
      patterns: where its parameters are not zero, None where that is not known.
      rules: rules of the user's.
    """
    analysis = analyse(traced, rules)
    program = traced.program
    of_inputs = [
        Zeros.of(False, analysis.shape(variable))
        for variable in program.inputs[traced.params :]
    ]
    is_changed = True
    while is_changed:
        of_params = map(analysis.zeros_of, program.inputs, patterns)
        find_zeros(program, [*of_params, *of_inputs], analysis)
        analysis.start_over()
        find_needs(program, analysis)
        # What was cut may leave zeros further down.
        is_changed = analysis.cut_more() or analysis.keep_one_of_each()
    return analysis


def analyse(traced: Trace, rules: Rules | None) -> Analysis:
    """Finds the units of a traced function; inputs and outputs are fixed."""
    for name, rule in (rules or {}).items():
        if not isinstance(rule, PrimitiveRule):
            raise ValueError(
                f"the rule of {name!r} is {rule!r}; it must be a PrimitiveRule, such "
                "as gradprune_jax.primitives.Elementwise()."
            )
    analysis = Analysis(traced.types, {**RULES, **(rules or {}), "": UNKNOWN})
    inputs = traced.program.inputs
    shapes = [analysis.shape(variable) for variable in inputs]
    axes = [*map(analysis.new_axes, shapes)]
    for axis in itertools.chain(*axes[traced.params :]):
        analysis.fix(axis, "input")
    find_axes(traced.program, axes, analysis)
    read = {operand for step in traced.program.steps for operand in step.operands}
    for variable in inputs:
        if variable not in read:
            analysis.fix_variable(variable, "not used")
        elif variable in inputs[: traced.params]:
            _fix_unread(variable, traced.program, analysis)
    for output in traced.program.outputs:
        analysis.fix_variable(output, "output")
    analysis.begin()
    return analysis


def _fix_unread(variable: int, program: Program, analysis: Analysis) -> None:
    """Fixes what slices of a parameter leave out: longer inputs may read it.

    A table of positions is sliced to the length of the inputs.
    """
    readers = [step for step in program.steps if variable in step.operands]
    if any(step.primitive.name != "slice" for step in readers):
        return
    for axis, units in enumerate(analysis.axes[variable]):
        whole = analysis.units.resolve(units)
        parts = [analysis.axes[step.results[0]][axis] for step in readers]
        if whole is not None:
            read = [analysis.units.resolve(part) for part in parts]
            found = [part.ravel() for part in read if part is not None]
            unread = np.setdiff1d(whole, np.concatenate([[-1], *found]))
            reason = f"not read by slice, {readers[0].source}"
            analysis.fix(unread.reshape(-1, 1), reason)
