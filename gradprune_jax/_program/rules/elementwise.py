"""Elementwise primitives: every axis of every operand is one of the result."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.rules.base import PrimitiveRule, bind
from gradprune_jax._program.rules.fills import alike_of_operands
from gradprune_jax._program.tracing import Step
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import Zeros, known_size

ELEMENTWISE = (
    *("abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan"),
    *("atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "clz"),
    *("complex", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh"),
    *("digamma", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor"),
    *("ge", "gt", "imag", "integer_pow", "is_finite", "le", "lgamma", "log"),
    *("log1p", "logistic", "lt", "max", "min", "name", "ne", "neg", "nextafter"),
    *("not", "or", "population_count", "pow", "real", "reduce_precision", "rem"),
    *("round", "rsqrt", "shift_left", "shift_right_arithmetic"),
    *("shift_right_logical", "sign", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "sub", "tan", "tanh", "xor"),
)
# Zero where one of their operands is.
PRODUCTS = ("mul", "and")


class Elementwise(PrimitiveRule):
    """Zero where all operands are, if the primitive is zero there."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Join all axes of one size; an axis of size 1 is repeated."""
        shape = analysis.shape(step.results[0])
        joined: list[Axis] = [None] * len(shape)
        met = [False] * len(shape)
        for operand in step.operands:
            sizes, axes = analysis.shape(operand), analysis.axes[operand]
            if len(sizes) != len(shape):
                continue  # a scalar
            for place, (axis, own, size) in enumerate(
                zip(axes, sizes, shape, strict=True)
            ):
                if own is not size and own != size:
                    continue  # of size 1, which is never cut
                joined[place] = (
                    analysis.join(joined[place], axis, step) if met[place] else axis
                )
                met[place] = True
        return [joined for _ in step.results]

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of all operands together."""
        shape = analysis.shape(step.results[0])
        operands = [analysis.zeros[operand] for operand in step.operands]
        if not self._keeps_zeros(step, analysis):
            return [Zeros.of(False, shape)]
        known = analysis.scalars
        used = [
            zeros
            for operand, zeros in zip(step.operands, operands, strict=True)
            if operand not in known
        ]
        return [together(used, shape, all)]

    def alike(self, step: Step, analysis: Analysis) -> Sequence[np.ndarray] | None:
        """Where all operands are, that are not the same everywhere along the axis."""
        return alike_of_operands(step, analysis, self.axis_of)

    def axis_of(
        self, step: Step, analysis: Analysis, operand: int, axis: int
    ) -> int | None:
        """An operand's axis along an axis of the result; None if it has none there."""
        shape = analysis.shape(operand)
        is_array = len(shape) == len(analysis.shape(step.results[0]))
        is_repeated = is_array and isinstance(shape[axis], int) and shape[axis] == 1
        return axis if is_array and not is_repeated else None

    def fill(self, step: Step, operands: Sequence[Any], shape: Sequence[Any]) -> Any:
        """The result, of one index along an axis."""
        del shape
        (result,) = bind(step, operands)
        return result

    def _keeps_zeros(self, step: Step, analysis: Analysis) -> bool:
        """Whether the primitive is zero where its operands are, but for constants."""
        # Zeros of both signs, in every combination: some functions tell them apart.
        signs = itertools.product((0.0, -0.0), repeat=len(step.operands))
        quiet = jax.debug_nans(False), jax.debug_infs(False)  # they are looked at here
        try:
            with jax.ensure_compile_time_eval(), quiet[0], quiet[1]:
                scalars = [
                    jnp.asarray(
                        [analysis.scalars.get(operand, zero) for zero in zeros],
                        analysis.types[operand].dtype,
                    )
                    for operand, zeros in zip(
                        step.operands, zip(*signs, strict=True), strict=True
                    )
                ]
                return not np.any(step.primitive.bind(*scalars, **step.params))
        except (TypeError, ValueError, NotImplementedError):
            return False


class Bitcast(Elementwise):
    """Other numbers of the same bits; where their width changes, so do the axes."""

    def axes(self, step: Step, analysis: Analysis) -> list[Sequence[Axis]]:
        """Those of the operand, or fixed ones."""
        if self._is_elementwise(step, analysis):
            return super().axes(step, analysis)
        return PrimitiveRule.axes(self, step, analysis)

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the operand, if it has the same axes."""
        if self._is_elementwise(step, analysis):
            return super().zeros(step, analysis)
        return PrimitiveRule.zeros(self, step, analysis)

    def _is_elementwise(self, step: Step, analysis: Analysis) -> bool:
        return analysis.shape(step.operands[0]) == analysis.shape(step.results[0])


class Product(Elementwise):
    """Zero where one of the operands is."""

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of any operand."""
        operands = [analysis.zeros[operand] for operand in step.operands]
        return [together(operands, analysis.shape(step.results[0]), any)]


class Quotient(Elementwise):
    """Zero where the numerator is."""

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of the numerator; among integers 0 / 0 is -1."""
        shape = analysis.shape(step.results[0])
        if not jnp.issubdtype(analysis.types[step.results[0]].dtype, jnp.inexact):
            return [Zeros.of(False, shape)]
        numerator = analysis.zeros[step.operands[0]]
        return [together([numerator], shape, all)]


class Choice(Elementwise):
    """Zero where all cases are."""

    def zeros(self, step: Step, analysis: Analysis) -> list[Zeros]:
        """Those of all cases together, whatever the choice."""
        cases = [analysis.zeros[operand] for operand in step.operands[1:]]
        return [together(cases, analysis.shape(step.results[0]), all)]


def together(
    operands: Sequence[Zeros], shape: Sequence[Any], how: Callable[[Any], bool]
) -> Zeros:
    """Where all operands are zero, or any of them is."""
    combine = np.logical_and if how is all else np.logical_or
    along = []
    for axis, size in enumerate(shape):
        flags = np.full(known_size(size), how is all)
        for zeros in operands:
            is_array = len(zeros.along) == len(shape)
            flags = combine(flags, zeros.along[axis] if is_array else zeros.all)
        along.append(flags)
    return Zeros(how(zeros.all for zeros in operands), along)
