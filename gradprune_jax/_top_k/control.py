"""Control flow: compiled loops and branches, or Python's where values are known.

Outside `jit`, a compiled loop would be one program with an operation for each leaf, and
would take longer to compile than to run. Python's loop calls functions that are
compiled once for each shape of a leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class ControlFlow(NamedTuple):
    """Loops and branches, with the arguments of `jax.lax`.

    Attributes:
      compiled: makes one program of a function without loops.
    """

    compiled: Callable[..., Any]
    while_loop: Callable[..., Any]
    fori_loop: Callable[..., Any]
    cond: Callable[..., Any]


def _while_loop(
    condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any
) -> Any:
    while condition(state):
        state = body(state)
    return state


def _fori_loop(
    lower: int, upper: int, body: Callable[[int, Any], Any], state: Any
) -> Any:
    for index in range(lower, upper):
        state = body(index, state)
    return state


def _cond(
    condition: Any, if_true: Callable[[], Any], if_false: Callable[[], Any]
) -> Any:
    return if_true() if condition else if_false()


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


COMPILED = ControlFlow(_same, jax.lax.while_loop, jax.lax.fori_loop, jax.lax.cond)
PYTHON = ControlFlow(jax.jit, _while_loop, _fori_loop, _cond)
