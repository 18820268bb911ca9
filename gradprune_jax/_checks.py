"""Checks of what users give: numbers in their range, tracers passed on unread."""

from __future__ import annotations

import operator
from typing import Any

import jax
import numpy as np

LAST_STEP = np.iinfo(np.int32).max


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def may_be_nonzero(number: Any) -> bool:
    """Whether a number is not zero, or is traced and so may not be zero."""
    return is_traced(number) or bool(number != 0)


def check_fraction(name: str, value: Any, hint: str = "") -> Any:
    """A number in [0, 1] as a Python float, or as it is if it is traced."""
    if is_traced(value):
        return value
    fraction = as_number(value)
    if fraction is None or not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{name} is {value!r}; it must be one number in [0, 1]{hint}.")
    return fraction


def check_sparsity(name: str, value: Any) -> Any:
    """The sparsity as a Python float, or as it is if it is traced."""
    hint = ": 0.9 means that 90 % of the weights become zero"
    return check_fraction(name, value, hint)


def check_power(power: Any) -> Any:
    """The exponent as it was given, refused if it is no positive number."""
    if is_traced(power):
        return power
    exponent = as_number(power)
    if exponent is None or not 0 < exponent < np.inf:
        raise ValueError(f"power is {power!r}; it must be a positive finite number.")
    return power if isinstance(power, int) else exponent


def as_number(value: Any) -> float | None:
    """Converts a scalar to a Python float; returns None if it is not a number."""
    if isinstance(value, str) or np.ndim(value) != 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def as_decimal(value: Any) -> float:
    """The decimal number that a scalar prints as: 0.1 for float32(0.1)."""
    return float(value if isinstance(value, int) else str(np.asarray(value)[()]))


def check_integer(name: str, value: Any, minimum: int, most: int | None = None) -> Any:
    """A number as a Python int, or as it is if it is traced."""
    if is_traced(value):
        return value
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    most = LAST_STEP if most is None else most
    if number is None or not minimum <= number <= most:
        raise ValueError(
            f"{name} is {value!r}; it must be an integer in [{minimum}, {most}]."
        )
    return number


def check_known(name: str, value: Any) -> Any:
    """The value, refused if it is traced."""
    if is_traced(value):
        raise ValueError(
            f"{name} is traced; it must be a number. Under optax.inject_hyperparams it "
            f"needs static_args={name!r}."
        )
    return value


def check_window(begin_step: Any, end_step: Any, every: Any) -> tuple[Any, Any, Any]:
    """Returns the three numbers, refused if `end_step` is before `begin_step`."""
    begin_step = check_integer("begin_step", begin_step, minimum=0)
    end_step = check_integer("end_step", end_step, minimum=0)
    every = check_integer("every", every, minimum=1)
    traced = is_traced(begin_step) or is_traced(end_step)
    if not traced and end_step < begin_step:
        raise ValueError(
            f"end_step is {end_step}, before begin_step, {begin_step}; it must be in "
            f"[{begin_step}, {LAST_STEP}], or the window has no mask update."
        )
    return begin_step, end_step, every


def check_axis(name: str, axis: Any) -> int | None:
    """The axis as a Python int, or None; refused if it is no integer known now."""
    if axis is None:
        return None
    try:
        if not isinstance(axis, bool | jax.Array):
            return operator.index(axis)
    except TypeError:
        pass
    raise ValueError(
        f"{name} is {axis!r}; it must be a Python integer or None. Under "
        f"optax.inject_hyperparams it needs static_args={name!r}."
    )
