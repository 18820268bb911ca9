"""Timing side by side: a shared machine slows everything, so ratios are what counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def milliseconds(function: Callable[[], Any]) -> float:
    """How long one call takes, until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return 1e3 * (time.perf_counter() - start)


def in_turns(functions: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """The milliseconds of every call of each function, taken in turns after warm-up."""
    for function in functions:
        jax.block_until_ready(function())
    rounds = [
        [milliseconds(function) for function in functions] for _ in range(repeats)
    ]
    return [list(times) for times in zip(*rounds, strict=True)]


def medians(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The median milliseconds of each function, taken in turns."""
    return [statistics.median(times) for times in in_turns(functions, repeats)]
