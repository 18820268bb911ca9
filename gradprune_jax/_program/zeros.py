"""Zeros: where values are zero, index by index along every axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gradprune_jax._checks import is_traced


class Zeros(NamedTuple):
    """Where a value is zero.

    Attributes:
      all: whether all of it is.
      along: for each axis, bool [size]: whether all of it is at that index; [1] where
        the size is not known.
    """

    all: bool
    along: Sequence[np.ndarray]

    @classmethod
    def of(cls, is_zero: bool, shape: Sequence[Any]) -> Zeros:
        """All of it, or nothing that is known."""
        return cls(is_zero, [np.full(known_size(size), is_zero) for size in shape])

    @classmethod
    def of_pattern(cls, nonzero: np.ndarray) -> Zeros:
        """Those of numbers of which it is known where they are not zero."""
        axes = range(nonzero.ndim)
        along = [
            np.asarray(~nonzero.any(tuple(other for other in axes if other != axis)))
            for axis in axes
        ]
        return cls(not nonzero.any(), along)


def nonzero(value: Any) -> np.ndarray | None:
    """Where a value is not zero, bool; None where that is not known."""
    if value is None or is_traced(value):
        return None
    dtype = jax.numpy.result_type(value)
    is_number = jax.numpy.issubdtype(dtype, np.number) or dtype == np.bool_
    return np.asarray(on_host(value) != 0) if is_number else None


def on_host(value: Any) -> Any:
    """An array of one CPU device as NumPy's, without a copy; others as they are."""
    if not isinstance(value, jax.Array) or is_traced(value):
        return value
    devices = value.devices()
    is_here = len(devices) == 1 and next(iter(devices)).platform == "cpu"
    is_number = jax.numpy.issubdtype(value.dtype, np.number) or value.dtype == bool
    return np.asarray(value) if is_here and is_number else value


def known_size(size: Any) -> int:
    """A size, or 1 where it is a symbol."""
    return size if isinstance(size, int) else 1
