"""One sparse array as its non-zeros and a bit for every element: sparse-bitmask."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradprune_jax._files.safetensors import Spec


class Bitmask(NamedTuple):
    """The layout that compressed-tensors calls `sparse-bitmask`.

    A row is the last axis. What is stored as a non-zero has a bit that is not zero:
    -0.0 and denormals too, so that every array comes back to the last bit.

    Attributes:
      compressed: the non-zeros in C order, of shape (non-zeros,).
      bitmask: uint8 of shape (*shape[:-1], ceil(shape[-1] / 8)), the lowest bit first.
      shape: int64 of shape (axes,).
      row_offsets: int64 of shape shape[:-1], cumulative counts of non-zeros along axis
        0, without the row itself.
    """

    compressed: np.ndarray
    bitmask: np.ndarray
    shape: np.ndarray
    row_offsets: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of all four arrays."""
        return sum(array.nbytes for array in self)


def compress(array: np.ndarray) -> Bitmask:
    """The bit-mask layout of an array with one axis or more.

    Examples:
      >>> packed = compress(np.array([[0.0, 3.0, 0.0], [0.0, 1.0, 2.0]]))
      >>> packed.compressed, packed.bitmask, packed.row_offsets
      (array([3., 1., 2.]), array([[2],
             [6]], dtype=uint8), array([0, 1]))
    """
    mask = nonzero_bits(array)
    counts = mask.sum(axis=-1, dtype=np.int64)
    before = np.cumsum(counts, axis=0) - counts if counts.ndim else counts - counts
    return Bitmask(
        compressed=array[mask],
        bitmask=np.packbits(mask, axis=-1, bitorder="little"),
        shape=np.array(array.shape, np.int64),
        row_offsets=np.asarray(before, np.int64),
    )


def decompress(packed: Bitmask) -> np.ndarray:
    """The array of a bit-mask layout.

    Args:
      packed: as `compress` makes it, or as it was read from a file.

    Returns:
      The array.

    Raises:
      ValueError: if the four arrays contradict each other.

    Examples:
      >>> decompress(compress(np.array([0.0, -0.0, 2.0])))
      array([ 0., -0.,  2.])
    """
    shape = checked_shape(packed.shape, packed.bitmask)
    bits = np.unpackbits(packed.bitmask, axis=-1, bitorder="little")
    mask = bits[..., : shape[-1]].astype(bool)
    if bits[..., shape[-1] :].any():
        raise ValueError("its bitmask has bits beyond the end of a row")
    if packed.compressed.shape != (int(mask.sum()),):
        raise ValueError(
            f"it has {packed.compressed.size} values for {int(mask.sum())} bits"
        )
    array = np.zeros(shape, packed.compressed.dtype)
    array[mask] = packed.compressed
    return array


def checked_shape(stored: np.ndarray, bitmask: Spec | np.ndarray) -> tuple[int, ...]:
    """The shape as a tuple.

    Args:
      stored: the shape as a file holds it.
      bitmask: the bits that belong to it, or what they will be.

    Raises:
      ValueError: if it can be no array's, or not that of these bits.
    """
    if stored.ndim != 1 or stored.dtype.kind not in "iu":
        raise ValueError("its shape is no list of integers")
    shape = tuple(int(length) for length in stored)
    if not shape or min(shape) < 0:
        raise ValueError(f"its shape is {shape}")
    rows = (*shape[:-1], -(-shape[-1] // 8))
    if bitmask.dtype != np.uint8 or bitmask.shape != rows:
        raise ValueError(
            f"its bitmask is {bitmask.dtype} of shape {bitmask.shape}, where the shape "
            f"{shape} needs uint8 of {rows}"
        )
    return shape


def compressed_nbytes(shape: tuple[int, ...], nonzero: int, itemsize: int) -> int:
    """The bytes of the layout, without making it."""
    rows = int(np.prod(shape[:-1], dtype=object))
    return nonzero * itemsize + rows * (-(-shape[-1] // 8) + 8) + 8 * len(shape)


def nonzero_bits(array: np.ndarray) -> np.ndarray:
    """Where an array has any bit that is not zero; bool of its shape."""
    if array.dtype.itemsize > 8:
        return array != 0
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") != 0
