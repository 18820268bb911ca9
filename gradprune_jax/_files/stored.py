"""Arrays that lie in a file: known by shape and dtype, read when they are wanted."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

# More weights, or axes, than any array has; a file that says so is damaged.
_SIZE, _AXES = 2**48, 64


class Spec(NamedTuple):
    """The shape and dtype of an array.

    Attributes:
      shape: of the array.
      dtype: of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file, which is read each time that its values are asked for.

    It has a shape and a dtype as NumPy's arrays do, and `np.asarray` reads it, so that
    it stands in a tree of parameters wherever leaves are read one at a time.

    Attributes:
      spec: its shape and dtype.
      read: reads it.
      file: which holds it, where a checkpoint has several.

    Examples:
      >>> spec = Spec((2,), np.dtype(np.float32))
      >>> stored = StoredArray(spec, lambda: np.ones(2, np.float32))
      >>> stored.shape, np.asarray(stored)
      ((2,), array([1., 1.], dtype=float32))
    """

    spec: Spec
    read: Callable[[], np.ndarray]
    file: pathlib.Path | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of every axis."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype."""
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.spec.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.spec.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the array: what `np.asarray` calls."""
        del copy  # what was read is nobody else's
        return np.asarray(self.read(), dtype)


def checked_shape(name: str, shape: Iterable[Any]) -> tuple[int, ...]:
    """Return the shape that a file gives an array, as a tuple of integers.

    Raises:
      ValueError: if no array has such a shape.
    """
    lengths = tuple(shape)
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError(
            f"the shape of {name!r} is {shortened(lengths)}; it must be integers of 0 "
            "or more"
        )
    # A length of 0 must not hide an impossible length of another axis.
    size = math.prod(max(length, 1) for length in lengths)
    if size >= _SIZE or len(lengths) > _AXES:
        said = shortened(lengths)
        raise ValueError(f"the shape of {name!r} is {said}, which no array has")
    return lengths


def shortened(said: Any) -> str:
    """Return a text from a file, cut after 80 letters so that errors stay readable."""
    text = str(said)
    return text if len(text) <= 80 else f"{text[:80]}..."
