"""One sparse array as its non-zeros and a bit for every element.

The layout is the one that the compressed-tensors library called `sparse-bitmask`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradprune_jax._files import Spec


class Bitmask(NamedTuple):
    """The four arrays that stand for a sparse one, in the layout `sparse-bitmask`.

    A row is the last axis. Everything but +0.0 is stored as a non-zero, -0.0 too, so
    that every array comes back to the last bit.

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


def compress(array: np.ndarray) -> Bitmask:
    """Pack an array of one axis or more into its non-zeros and a bit mask.

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
    """Unpack an array from its non-zeros and its bit mask.

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
    """Return the shape that a file holds, as a tuple, if it is that of the bit mask.

    Args:
      stored: the shape as a file holds it.
      bitmask: the bit mask, or its shape and dtype.

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


def part_specs(spec: Spec, nonzero: int) -> dict[str, Spec]:
    """Return the shapes and dtypes of a sparse array's parts, without making them."""
    *rows, columns = spec.shape
    return {
        "compressed": Spec((nonzero,), spec.dtype),
        "bitmask": Spec((*rows, -(-columns // 8)), np.dtype(np.uint8)),
        "shape": Spec((len(spec.shape),), np.dtype(np.int64)),
        "row_offsets": Spec(tuple(rows), np.dtype(np.int64)),
    }


def nonzero_bits(array: np.ndarray) -> np.ndarray:
    """Return where an array is not +0.0, bit for bit; bool of its shape."""
    if array.dtype.itemsize > 8:
        return array != 0
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}") != 0
