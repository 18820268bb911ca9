"""Storage report: the bytes that parameters take in every layout."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._inspection import is_countable
from gradprune_jax._structures import NM
from gradprune_jax.export import bitmask as _bitmask
from gradprune_jax.report.table import printable

LAYOUTS = ("dense", "bitmask", "csr", "coo", "nm")

# Of a column's or an axis's index, as in SciPy, cuSPARSE and jax.experimental.sparse.
_INDEX = 4


@dataclasses.dataclass(frozen=True)
class LeafStorage:
    """The bytes of one parameter.

    Attributes:
      path: of the parameter.
      shape: of the array.
      dtype: of the array.
      size: the number of weights.
      nonzero: those that are not zero.
      nbytes: by layout; None where a layout does not fit.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int
    nonzero: int
    nbytes: dict[str, int | None]

    def smallest(self, layout: str) -> int:
        """The bytes in a layout, or dense where that is smaller or the only one."""
        dense = self.nbytes["dense"] or 0
        nbytes = self.nbytes[layout]
        return dense if nbytes is None else min(nbytes, dense)


@dataclasses.dataclass(frozen=True)
class StorageReport:
    """The bytes of all parameters; `print` shows a table.

    Attributes:
      leaves: the parameters, in the order of the tree.
      pattern: the N:M of the layout "nm".
      gzip: the bytes that zlib makes of all dense arrays one after the other; None if
        it was not asked for.
      zstd: those that Zstandard makes of them.
    """

    leaves: tuple[LeafStorage, ...]
    pattern: NM
    gzip: int | None
    zstd: int | None

    @property
    def total(self) -> dict[str, int]:
        """The bytes of all parameters by layout, each stored dense where smaller."""
        return {
            layout: sum(leaf.smallest(layout) for leaf in self.leaves)
            for layout in LAYOUTS
        }

    def __str__(self) -> str:
        pattern = f"{self.pattern.keep}:{self.pattern.of}"
        header = ("path", "shape", "dtype", "non-zero", *LAYOUTS[:-1], pattern)
        rows = [header, *(_row(leaf) for leaf in self.leaves)]
        nonzero = sum(leaf.nonzero for leaf in self.leaves)
        totals = (f"{nbytes:,}" for nbytes in self.total.values())
        rows.append(("total", "", "", f"{nonzero:,}", *totals))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        packed = {"gzip": self.gzip, "zstd": self.zstd}
        said = [f"{name} {size:,}" for name, size in packed.items() if size is not None]
        if said:
            lines.append(f"dense, compressed: {', '.join(said)} bytes")
        return "\n".join(lines)


def storage_report(
    params: Any, *, pattern: NM | None = None, compress: bool = True
) -> StorageReport:
    r"""The bytes that parameters take: dense, sparse in several layouts, compressed.

    Of n weights of b bytes, with z non-zeros in r rows of c columns (all axes but the
    last are rows):

    - dense: $n b$;
    - bit mask: $z b + r \lceil c / 8 \rceil$ and 8 bytes a row and an axis, as
      `save_sparse` writes it;
    - CSR: $z b + 4 z + 4 (r + 1)$, with 32-bit indices;
    - COO: $z b + 4 z$ an axis, as in `jax.experimental.sparse.BCOO`;
    - N:M packed: $n b N / M$ and $\lceil \log_2 M \rceil$ bits for each
      value kept, of leaves that have no more than N non-zeros in any group.

    Args:
      params: parameters, plain or boxed; not traced. Leaves that are not floating do
        not count.
      pattern: the N:M whose packed size is wanted; `NM(2, 4)` if None.
      compress: whether to find what zlib (level 6) and Zstandard (level 3) make of the
        dense arrays, which takes half a minute a gigabyte.

    Returns:
      The report, with bytes for each parameter and in total.

    Raises:
      ImportError: if `compress` is set and zstandard is not installed.
      ValueError: if the parameters are traced.

    Examples:
      >>> kernel = np.zeros((64, 64), np.float32)
      >>> kernel[::8] = 1
      >>> print(storage_report({"kernel": kernel}, compress=False))
      path    shape  dtype    non-zero   dense  bitmask    csr    coo    2:4
      ------  -----  -------  --------  ------  -------  -----  -----  -----
      kernel  64x64  float32       512  16,384    3,088  4,356  6,144  8,704
      total                        512  16,384    3,088  4,356  6,144  8,704

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
      2017, section 5.
    """
    return measure(_on_host(params), pattern or NM(2, 4), compress)


def measure(
    arrays: Iterable[tuple[str, np.ndarray]], pattern: NM, compress: bool
) -> StorageReport:
    """The report on named arrays, which are seen once and one at a time."""
    sizes = _CompressedSizes() if compress else None
    leaves = []
    for name, array in arrays:
        leaves.append(_measure_leaf(name, array, pattern))
        if sizes is not None:
            sizes.add(array)
    gzip, zstd = (None, None) if sizes is None else sizes.finish()
    return StorageReport(tuple(leaves), pattern, gzip, zstd)


def _on_host(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The floating leaves of a tree by name."""
    for leaf in _tree.named_leaves(params):
        if is_countable(leaf.value) and leaf.value.dtype != bool:
            if is_traced(leaf.value):
                raise ValueError(
                    "storage_report reads values and cannot run under jit; call it "
                    "between steps."
                )
            yield leaf.name, np.asarray(leaf.value)


def _measure_leaf(name: str, array: np.ndarray, pattern: NM) -> LeafStorage:
    """The bytes of one array."""
    nonzero = int(np.count_nonzero(_bitmask.nonzero_bits(array)))
    shape = array.shape or (1,)
    rows = math.prod(shape[:-1])
    values = nonzero * array.itemsize
    return LeafStorage(
        path=name,
        shape=array.shape,
        dtype=array.dtype,
        size=array.size,
        nonzero=nonzero,
        nbytes={
            "dense": array.nbytes,
            "bitmask": _bitmask.compressed_nbytes(shape, nonzero, array.itemsize),
            "csr": values + nonzero * _INDEX + (rows + 1) * _INDEX,
            "coo": values + nonzero * _INDEX * len(shape),
            "nm": _packed(array, pattern),
        },
    )


def _packed(array: np.ndarray, pattern: NM) -> int | None:
    """The bytes of an array packed as N:M, or None if it has too many non-zeros."""
    if not -array.ndim <= pattern.axis < array.ndim or array.ndim < 2:
        return None
    length = array.shape[pattern.axis]
    if not array.size or length % pattern.of:
        return None
    mask = np.moveaxis(_bitmask.nonzero_bits(array), pattern.axis, -1)
    groups = mask.reshape(-1, pattern.of).sum(axis=-1)
    if groups.max() > pattern.keep:
        return None
    kept = groups.size * pattern.keep
    return kept * array.itemsize + -(-kept * (pattern.of - 1).bit_length() // 8)


class _CompressedSizes:
    """What zlib and Zstandard make of arrays one after the other."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise ImportError(
                "storage_report compresses with zstandard: pip install "
                '"gradprune_jax[export]", or give compress=False'
            ) from None
        self._gzip = zlib.compressobj(6)
        self._zstd = zstandard.ZstdCompressor(level=3).compressobj()
        self._sizes = (0, 0)

    def add(self, array: np.ndarray) -> None:
        """Compresses one more array."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        gzip, zstd = self._sizes
        self._sizes = (
            gzip + len(self._gzip.compress(content)),
            zstd + len(self._zstd.compress(content)),
        )

    def finish(self) -> tuple[int, int]:
        """The sizes of all arrays together."""
        gzip, zstd = self._sizes
        return gzip + len(self._gzip.flush()), zstd + len(self._zstd.flush())


def _row(leaf: LeafStorage) -> tuple[str, ...]:
    """The cells of a parameter in the printed table."""
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    sizes = ("" if size is None else f"{size:,}" for size in leaf.nbytes.values())
    return (printable(leaf.path), shape, str(leaf.dtype), f"{leaf.nonzero:,}", *sizes)
