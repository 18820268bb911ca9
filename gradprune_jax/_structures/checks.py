"""Checks of the fields of structures."""

from __future__ import annotations

import operator
from typing import Any, Literal, get_args

Shape = tuple[int, ...]
Pool = Literal["mean", "max"]


def check_index(name: str, value: Any) -> int:
    """The value as a Python int, refused if it is no integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be an integer.") from None


def check_pool(pool: Any) -> None:
    """Refuses all but the ways to pool a score."""
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {get_args(Pool)}.")
