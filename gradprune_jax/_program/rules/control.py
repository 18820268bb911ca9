"""Loops and branches: what is carried has the same units in every turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.rules.base import PrimitiveRule
from gradprune_jax._program.tracing import Program, Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.walks import find_axes, find_needs, find_zeros, run
from gradprune_jax._program.zeros import Zeros, known_size


class Scan(PrimitiveRule):
    """An index of a stacked leaf goes only if it goes in every layer."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Fix the axis that is scanned, and join what is carried."""
        (body,), consts, carry = step.bodies, *self._counts(step)
        given = [analysis.axes[operand] for operand in step.operands]
        for operand in step.operands[consts + carry :]:
            analysis.fix(analysis.axes[operand][0], f"scan, {step.source}")
        inner = [
            *given[: consts + carry],
            *(axes[1:] for axes in given[consts + carry :]),
        ]
        find_axes(body, inner, analysis)
        outputs = [analysis.axes[output] for output in body.outputs]
        carried = _joined(
            analysis, step, inner[consts : consts + carry], outputs[:carry]
        )
        return [*carried, *([None, *axes] for axes in outputs[carry:])]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """What is zero before the first turn, and stays so."""
        (body,), consts, carry = step.bodies, *self._counts(step)
        given = [analysis.zeros[operand] for operand in step.operands]
        layers = [Zeros(x.all, x.along[1:]) for x in given[consts + carry :]]
        # What is carried is another value in every turn.
        analysis.copy_patterns(step.operands[:consts], body.inputs)
        after = consts + carry
        analysis.copy_patterns(step.operands[after:], body.inputs[after:])

        def turn(carried: list[Zeros]) -> list[Zeros]:
            find_zeros(body, [*given[:consts], *carried, *layers], analysis)
            return [analysis.zeros[output] for output in body.outputs]

        outputs = _until_stable(turn, given[consts : consts + carry])
        return [
            *outputs[:carry],
            *(
                Zeros(
                    x.all,
                    [np.full(known_size(analysis.shape(result)[0]), x.all), *x.along],
                )
                for x, result in zip(outputs[carry:], step.results[carry:], strict=True)
            ),
        ]

    def needs(self, step: Step, analysis: Analysis) -> None:
        """Those of all turns."""
        _needs_of_loop(step, analysis)

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Scan over the smaller layers."""
        (body,), consts, carry = step.bodies, *self._counts(step)
        fixed = operands[:consts]

        def turn(carried: Any, layer: Any) -> Any:
            results = run(body, [*fixed, *carried, *layer], cut)
            return results[:carry], results[carry:]

        carried, stacked = jax.lax.scan(
            turn,
            list(operands[consts : consts + carry]),
            list(operands[consts + carry :]),
            # What is scanned says it too, where a length is a symbol.
            length=None if step.operands[consts + carry :] else step.params["length"],
            reverse=step.params["reverse"],
            unroll=step.params["unroll"],
        )
        return [*carried, *stacked]

    def _counts(self, step: Step) -> tuple[int, int]:
        return step.params["num_consts"], step.params["num_carry"]


class While(PrimitiveRule):
    """What is carried is joined with what a turn returns."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join what is carried."""
        given = [analysis.axes[operand] for operand in step.operands]
        condition, body, of_condition, of_body, start = self._parts(step, given)
        find_axes(condition, [*of_condition, *start], analysis)
        find_axes(body, [*of_body, *start], analysis)
        outputs = [analysis.axes[output] for output in body.outputs]
        joined = _joined(analysis, step, start, outputs)
        # Under vmap each loop has a condition, which chooses what it carries.
        for place, axis in enumerate(analysis.axes[condition.outputs[0]]):
            for own in joined:
                axis = analysis.join(axis, own[place], step)
        return joined

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """What is zero before the first turn, and stays so."""
        given = [analysis.zeros[operand] for operand in step.operands]
        condition, body, of_condition, of_body, start = self._parts(step, given)
        first, second = len(of_condition), len(of_body)
        analysis.copy_patterns(step.operands[:first], condition.inputs)
        analysis.copy_patterns(step.operands[first : first + second], body.inputs)

        def turn(now: list[Zeros]) -> list[Zeros]:
            find_zeros(condition, [*of_condition, *now], analysis)
            find_zeros(body, [*of_body, *now], analysis)
            return [analysis.zeros[output] for output in body.outputs]

        return _until_stable(turn, start)

    def needs(self, step: Step, analysis: Analysis) -> None:
        """Those of all turns."""
        _needs_of_loop(step, analysis)

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Loop over the smaller values."""
        condition, body, of_condition, of_body, start = self._parts(step, operands)

        def goes_on(carried: Sequence[jax.Array]) -> jax.Array:
            return run(condition, [*of_condition, *carried], cut)[0]

        def turn(carried: Sequence[jax.Array]) -> list[jax.Array]:
            after = run(body, [*of_body, *carried], cut)
            if not cut.analysis.shape(condition.outputs[0]):
                return after
            own = goes_on(carried)
            return [
                jnp.where(jnp.expand_dims(own, range(own.ndim, new.ndim)), new, old)
                for new, old in zip(after, carried, strict=True)
            ]

        return jax.lax.while_loop(
            lambda carried: jnp.any(goes_on(carried)), turn, list(start)
        )

    def _parts(
        self, step: Step, operands: Sequence[Any]
    ) -> tuple[Program, Program, Any, Any, Any]:
        """Both programs, the operands of each alone, and what is carried."""
        first, second = step.params["cond_nconsts"], step.params["body_nconsts"]
        condition, body = step.bodies
        return (
            condition,
            body,
            operands[:first],
            operands[first : first + second],
            operands[first + second :],
        )


class Branches(PrimitiveRule):
    """Results are those of any branch, so all are cut alike."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join the results of all branches."""
        given = [analysis.axes[operand] for operand in step.operands[1:]]
        joined: list[Sequence[Axis]] | None = None
        for branch in step.bodies:
            find_axes(branch, given, analysis)
            own = [analysis.axes[output] for output in branch.outputs]
            joined = own if joined is None else _joined(analysis, step, joined, own)
        return joined or []

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Zero where all branches are."""
        given = [analysis.zeros[operand] for operand in step.operands[1:]]
        results: list[Zeros] | None = None
        for branch in step.bodies:
            analysis.copy_patterns(step.operands[1:], branch.inputs)
            find_zeros(branch, given, analysis)
            own = [analysis.zeros[output] for output in branch.outputs]
            results = own if results is None else [*map(_both, results, own)]
        return results or []

    def needs(self, step: Step, analysis: Analysis) -> None:
        """Those of every branch."""
        for branch in step.bodies:
            find_needs(branch, analysis)

    def replay(
        self, step: Step, operands: Sequence[jax.Array], cut: Cut
    ) -> Sequence[jax.Array]:
        """Choose among the smaller branches."""
        branches = [
            lambda *given, branch=branch: run(branch, given, cut)
            for branch in step.bodies
        ]
        return jax.lax.switch(operands[0], branches, *operands[1:])


def _needs_of_loop(step: Step, analysis: Analysis) -> None:
    """What a turn needs of the one before it, until it needs no more."""
    before = -1
    while before != analysis.needed:
        before = analysis.needed
        for body in step.bodies:
            find_needs(body, analysis)


def _joined(
    analysis: Analysis,
    step: Step,
    ones: Sequence[Sequence[Axis]],
    others: Sequence[Sequence[Axis]],
) -> list[Sequence[Axis]]:
    """Values that are cut alike."""
    return [
        [analysis.join(*pair, step) for pair in zip(one, other, strict=True)]
        for one, other in zip(ones, others, strict=True)
    ]


def _until_stable(
    turn: Callable[[list[Zeros]], list[Zeros]], start: Sequence[Zeros]
) -> list[Zeros]:
    """The outputs of a turn that leaves what is carried as it was."""
    carried = list(start)
    while True:
        outputs = turn(carried)
        after = [_both(*pair) for pair in zip(carried, outputs, strict=False)]
        if all(map(_equal, carried, after)):
            return [*after, *outputs[len(after) :]]
        carried = after


def _both(one: Zeros, other: Zeros) -> Zeros:
    along = [a & b for a, b in zip(one.along, other.along, strict=True)]
    return Zeros(one.all and other.all, along)


def _equal(one: Zeros, other: Zeros) -> bool:
    return one.all == other.all and all(map(np.array_equal, one.along, other.along))
