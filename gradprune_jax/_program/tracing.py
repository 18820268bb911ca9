"""Tracing: a function as a flat list of steps, each call of an inner function inlined.

A jaxpr may be called from several places. So every call gets variables of its own, and
what is found out of one says nothing of another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core, source_info_util

# Calls that are inlined, and the parameter that holds what is called.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "composite": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
# Loops and branches, and the parameters that hold their bodies.
BODIES = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One primitive operation.

    Attributes:
      primitive: the primitive.
      params: its parameters.
      operands: the variables that it reads.
      results: the variables that it writes.
      bodies: the programs inside a loop or a branch.
      source: the line of the user's code that it comes from, as JAX records it.
      has_effect: whether it does more than write its results, as a print does.
    """

    primitive: Any
    params: dict[str, Any]
    operands: Sequence[int]
    results: Sequence[int]
    bodies: Sequence[Program]
    source: str
    has_effect: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """Steps in order. Variables are numbers, whose types `Trace.types` holds.

    Attributes:
      inputs: the variables that are given.
      constants: the variables whose values are known, with these values.
      steps: the steps.
      outputs: the variables that are returned.
    """

    inputs: Sequence[int]
    constants: Sequence[tuple[int, Any]]
    steps: Sequence[Step]
    outputs: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced function of parameters and inputs.

    Attributes:
      program: what it computes.
      types: shape and dtype of every variable, inner programs included.
      params: how many inputs of the program are leaves of the parameters.
      outputs: the tree of the function's outputs.
    """

    program: Program
    types: Sequence[Any]
    params: int
    outputs: Any


def trace(fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> Trace:
    """Traces `fn(params, *inputs)`, on arrays or shapes."""
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(params, *inputs)
    tracer = _Inliner()
    program = tracer.program(closed)
    return Trace(
        program,
        tracer.types,
        len(jax.tree.leaves(params)),
        jax.tree.structure(shapes),
    )


class _Inliner:
    """Numbers the variables of a jaxpr and of all that it calls."""

    def __init__(self) -> None:
        self.types: list[Any] = []

    def program(self, closed: Any) -> Program:
        """A closed jaxpr as a program of its own."""
        constants: list[tuple[int, Any]] = []
        steps: list[Step] = []
        numbers: dict[Any, int] = {}
        self._add_constants(closed, numbers, constants)
        for variable in closed.jaxpr.invars:
            numbers[variable] = self._new(variable.aval)
        inputs = [numbers[variable] for variable in closed.jaxpr.invars]
        outputs = self._inline(closed.jaxpr, numbers, constants, steps)
        return Program(inputs, constants, _used(steps, outputs), outputs)

    def _inline(
        self,
        jaxpr: Any,
        numbers: dict[Any, int],
        constants: list[tuple[int, Any]],
        steps: list[Step],
    ) -> list[int]:
        """Appends the steps of a jaxpr, and returns its outputs."""

        def number(atom: Any) -> int:
            if not isinstance(atom, core.Literal):
                return numbers[atom]
            new = self._new(atom.aval)
            constants.append((new, atom.val))
            return new

        for equation in jaxpr.eqns:
            operands = [number(atom) for atom in equation.invars]
            inner = INLINED.get(equation.primitive.name)
            if inner is not None and inner in equation.params:
                results = self._call(equation.params[inner], operands, constants, steps)
                numbers.update(zip(equation.outvars, results, strict=True))
                continue
            results = [self._new(variable.aval) for variable in equation.outvars]
            numbers.update(zip(equation.outvars, results, strict=True))
            bodies = [
                self.program(body)
                for name in BODIES.get(equation.primitive.name, ())
                for body in _several(equation.params[name])
            ]
            line = source_info_util.summarize(equation.source_info)
            steps.append(
                Step(
                    equation.primitive,
                    equation.params,
                    operands,
                    results,
                    bodies,
                    line.rsplit("/", 1)[-1],
                    bool(equation.effects),
                )
            )
        return [number(atom) for atom in jaxpr.outvars]

    def _call(
        self,
        called: Any,
        operands: list[int],
        constants: list[tuple[int, Any]],
        steps: list[Step],
    ) -> list[int]:
        """Inlines a call: its variables are numbered anew."""
        numbers: dict[Any, int] = {}
        jaxpr = called
        if hasattr(called, "consts"):
            jaxpr = called.jaxpr
            self._add_constants(called, numbers, constants)
        numbers.update(zip(jaxpr.invars, operands, strict=True))
        return self._inline(jaxpr, numbers, constants, steps)

    def _add_constants(
        self,
        closed: Any,
        numbers: dict[Any, int],
        constants: list[tuple[int, Any]],
    ) -> None:
        """Numbers the constants of a closed jaxpr."""
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            numbers[variable] = self._new(variable.aval)
            constants.append((numbers[variable], value))

    def _new(self, aval: Any) -> int:
        self.types.append(aval)
        return len(self.types) - 1


def _used(steps: Sequence[Step], outputs: Sequence[int]) -> list[Step]:
    """The steps on whose results the outputs depend, and those with effects."""
    needed, used = set(outputs), []
    for step in reversed(steps):
        if step.has_effect or needed.intersection(step.results):
            needed.update(step.operands)
            used.append(step)
    return used[::-1]


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,)
