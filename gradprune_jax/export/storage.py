"""Storage report: the bytes of parameters in every layout."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._budget import layout_nbytes
from gradprune_jax._geometry import block_shape
from gradprune_jax._inspection import is_countable
from gradprune_jax._structures import NM
from gradprune_jax._tables import by, printable, text_table
from gradprune_jax.export import bitmask

LAYOUTS = ("dense", "bitmask", "csr", "coo", "nm")


@dataclasses.dataclass(frozen=True)
class LeafStorage:
    """The bytes of one parameter.

    Attributes:
      path: of the parameter.
      shape: of the array.
      dtype: of the array.
      size: the number of weights.
      nonzero: those that sparse layouts store: all that are not +0.0.
      nbytes: the bytes in each layout; None where a layout does not fit.
      negative_zeros: how many of the stored are -0.0, as `weight * mask` leaves them.
      in_pattern: the fraction of the N:M groups with at most N non-zero weights; None
        where groups do not fit the shape.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    size: int
    nonzero: int
    nbytes: dict[str, int | None]
    negative_zeros: int = 0
    in_pattern: float | None = None

    def smallest(self, layout: str) -> int:
        """Return the bytes in a layout, or dense where the layout is no smaller."""
        dense = self.nbytes["dense"] or 0
        nbytes = self.nbytes[layout]
        return dense if nbytes is None else min(nbytes, dense)


@dataclasses.dataclass(frozen=True)
class StorageReport:
    """The bytes of all parameters; `print` shows a table.

    Attributes:
      leaves: the parameters, in the order of the tree.
      pattern: the N:M of the layout "nm".
      gzip: the bytes of all dense arrays when zlib compresses them one after the other;
        None if it was not asked for.
      zstd: their bytes when Zstandard does.
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
        nonzero = sum(leaf.nonzero for leaf in self.leaves)
        totals = (f"{nbytes:,}" for nbytes in self.total.values())
        rows = [*map(_row, self.leaves), ("total", "", "", f"{nonzero:,}", *totals)]
        lines = [text_table(header, rows, left=3)]
        packed = {"gzip": self.gzip, "zstd": self.zstd}
        said = [f"{name} {size:,}" for name, size in packed.items() if size is not None]
        if said:
            lines.append(f"dense, compressed: {', '.join(said)} bytes")
        return "\n".join(lines)


def storage_report(
    params: Any, *, pattern: NM | None = None, compress: bool = True
) -> StorageReport:
    r"""Measure the bytes of parameters: dense, in sparse layouts, and compressed.

    Of n weights of b bytes, with z non-zeros in r rows of c columns (all axes but the
    last are rows):

    - dense: $n b$;
    - bit mask: $z b + r \lceil c / 8 \rceil$ and 8 bytes a row and an axis, as
      `save_sparse` writes it;
    - CSR: $z b + 4 z + 4 (r + 1)$, with 32-bit indices;
    - COO: $z b + 4 z$ an axis, as in `jax.experimental.sparse.BCOO`;
    - N:M packed: $n b N / M$ and $\lceil \log_2 M \rceil$ bits for each
      value kept, of leaves that have no more than N non-zeros in any group.

    Leaves are brought to the host one at a time.

    Args:
      params: parameters, plain or boxed; not traced. Leaves that are not floating do
        not count. What `open_sparse` returns is read as it is needed.
      pattern: the N:M whose packed size is wanted; `NM(2, 4)` if None.
      compress: whether to compress the dense arrays with zlib (level 6) and Zstandard
        (level 3), which takes half a minute a gigabyte.

    Returns:
      The report, with bytes for each parameter and in total.

    Raises:
      ImportError: if `compress` is set and zstandard is not installed.
      ValueError: if the parameters are traced, or shapes without values, or the
        pattern is none.

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
    pattern = NM(2, 4) if pattern is None else pattern
    if not isinstance(pattern, NM):
        raise ValueError(f"pattern is {pattern!r}; it must be NM(keep, of) or None.")
    sizes = _CompressedSizes() if compress else None
    leaves = []
    for name, array in _on_host(params):
        leaves.append(_measure(name, array, pattern))
        if sizes is not None:
            sizes.add(array)
    gzip, zstd = (None, None) if sizes is None else sizes.finish()
    return StorageReport(tuple(leaves), pattern, gzip, zstd)


def _on_host(params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the floating leaves of a tree by name, one in memory at a time."""
    for leaf in _tree.named_leaves(params):
        if is_countable(leaf.value) and leaf.value.dtype != bool:
            _tree.check_values([leaf], "storage_report")
            yield leaf.name, np.asarray(leaf.value)


def _measure(name: str, array: np.ndarray, pattern: NM) -> LeafStorage:
    """Measure one array."""
    live, stored = array != 0, bitmask.nonzero_bits(array)
    nonzero = int(np.count_nonzero(stored))
    negative_zeros = nonzero - int(np.count_nonzero(live))
    in_groups = _count_in_groups(stored, pattern)
    live_in_groups = _count_in_groups(live, pattern) if negative_zeros else in_groups
    return LeafStorage(
        path=name,
        shape=array.shape,
        dtype=array.dtype,
        size=array.size,
        nonzero=nonzero,
        negative_zeros=negative_zeros,
        in_pattern=(
            None
            if live_in_groups is None
            else float((live_in_groups <= pattern.keep).mean())
        ),
        nbytes={
            "dense": array.nbytes,
            **{
                layout: layout_nbytes(layout, array.shape, array.itemsize, nonzero)
                for layout in ("bitmask", "csr", "coo")
            },
            "nm": _packed_nbytes(in_groups, array.itemsize, pattern),
        },
    )


def _count_in_groups(mask: np.ndarray, pattern: NM) -> np.ndarray | None:
    """Count what is True in each group of M; None if groups do not fit the shape."""
    if mask.ndim < 2 or not mask.size:
        return None
    try:
        block_shape(pattern, mask.shape)
    except ValueError:
        return None
    return np.moveaxis(mask, pattern.axis, -1).reshape(-1, pattern.of).sum(axis=-1)


def _packed_nbytes(
    in_groups: np.ndarray | None, itemsize: int, pattern: NM
) -> int | None:
    """Return the bytes of N values a group and their places; None if one has more."""
    if in_groups is None or in_groups.max() > pattern.keep:
        return None
    kept = in_groups.size * pattern.keep
    return kept * itemsize + -(-kept * (pattern.of - 1).bit_length() // 8)


class _CompressedSizes:
    """Compresses arrays one after the other with zlib and Zstandard, for the size."""

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
        """Compress one more array."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        gzip, zstd = self._sizes
        self._sizes = (
            gzip + len(self._gzip.compress(content)),
            zstd + len(self._zstd.compress(content)),
        )

    def finish(self) -> tuple[int, int]:
        """Return the compressed sizes of all arrays together."""
        gzip, zstd = self._sizes
        return gzip + len(self._gzip.flush()), zstd + len(self._zstd.flush())


def _row(leaf: LeafStorage) -> tuple[str, ...]:
    """Return the printed cells of a parameter."""
    sizes = ("" if size is None else f"{size:,}" for size in leaf.nbytes.values())
    name, shape = printable(leaf.path), by(leaf.shape)
    return (name, shape, str(leaf.dtype), f"{leaf.nonzero:,}", *sizes)
