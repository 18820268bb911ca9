"""Packing: small leaves are copied together, so that one search serves them all.

What a mask update costs to compile grows with the number of leaves, for each is counted
by operations of its own. So small leaves are searched by a loop over bins. A bin is an
array of rows. In each turn a few leaves are copied into it, each slice into rows of its
own, and one search finds the thresholds of all of them. It is compiled once, and a bin
takes a small part of the memory of all leaves.

Only leaves that are whole on a device are packed, for else data would be moved.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._top_k.shards import whole
from gradprune_jax._top_k.units import Units

# The units of a row.
ROW = 2**10
# The lengths of the zeros that fill rows and bins.
_ZEROS = tuple(4**power for power in range(9))
# Larger leaves are searched where they are: a copy of them takes too long.
LARGEST_PACKED = 2**19
# A bin holds one in so many of all units, but room for so many at least.
BINS = 16
SMALLEST_BIN = 2**18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedUnits(Units):
    """The units of a bin, [rows, ROW]; those that no leaf has are pruned.

    Attributes:
      sizes: the number of units of each slice, uint32 [slices]; 0 where there is none.
      slice_of_row: the slice that each row belongs to, int32 [rows].
      index_of_row: the reversed index of each row's first unit, uint32 [rows].
    """

    sizes: Any = None
    slice_of_row: Any = None
    index_of_row: Any = None

    @property
    def is_whole(self) -> bool:
        """Its rows are added up by slice, which `add_runs` does not do."""
        return False

    @property
    def slices(self) -> int:
        """The number of slices of a bin."""
        return len(self.sizes)

    @property
    def slice_sizes(self) -> Any:
        """The number of units in each slice, uint32 [slices]."""
        return self.sizes

    def reversed_index(self, last_index: Any) -> jax.Array:
        """The last flat index of a slice minus the unit's own: uint32."""
        del last_index
        along = jnp.arange(ROW, dtype=jnp.uint32)
        return jnp.expand_dims(self.index_of_row, 1) - jnp.expand_dims(along, 0)

    def _spread(self, per_slice: jax.Array) -> jax.Array:
        """Numbers [..., slices], made to broadcast over units."""
        return jnp.expand_dims(jnp.take(per_slice, self.slice_of_row, axis=-1), -1)

    def _of_all_slices(self, counts: jax.Array) -> jax.Array:
        """Counts [..., slices] from those of rows, [..., rows]."""
        leading = range(counts.ndim - 1)
        slices = jnp.arange(self.slices, dtype=jnp.int32).reshape(-1, 1)
        members = jnp.expand_dims(self.slice_of_row, 0) == slices
        members = jnp.expand_dims(members, leading)
        own = jnp.where(members, jnp.expand_dims(counts, -2), jnp.uint32(0))
        return jnp.sum(own, -1, dtype=jnp.uint32)


@dataclasses.dataclass(frozen=True)
class Bins:
    """Leaves of one kind in bins of one shape.

    Attributes:
      leaves: the leaves of each bin.
      slices: the numbers of their slices among those of all leaves, int [bins, slices];
        -1 where a bin has fewer.
      rows: the number of rows of a bin.
    """

    leaves: Sequence[Sequence[Units]]
    slices: np.ndarray
    rows: int

    def pack(self, number: jax.Array) -> PackedUnits:
        """Copies the leaves of one bin into rows."""
        one = self.leaves[0][0]
        # Made here, not where they are copied: there XLA would compile a kernel for
        # every copy, in place of moving memory.
        zeros = {
            dtype: {length: jnp.zeros(length, dtype) for length in _ZEROS}
            for dtype in {
                array.dtype for array in jax.tree.leaves((one.data, one.first))
            }
        }

        def copy(leaves: Sequence[Units]) -> Any:
            arrays = [(leaf.data, leaf.first) for leaf in leaves]
            return jax.tree.map(
                lambda *own: self._in_rows(own, leaves, zeros[own[0].dtype]), *arrays
            )

        copies = [functools.partial(copy, leaves) for leaves in self.leaves]
        data, first = jax.lax.switch(number, copies)
        numbers = (jnp.asarray(own)[number] for own in self._rows_and_slices())
        shard = whole((self.rows, ROW))
        return PackedUnits(
            data,
            first,
            one.make_keys,
            one.dtype,
            (0,),
            shard,
            one.signed,
            *numbers,
        )

    def _in_rows(
        self,
        arrays: Sequence[jax.Array],
        leaves: Sequence[Units],
        zeros: dict[int, jax.Array],
    ) -> jax.Array:
        """One array of each leaf, zeros where rows are longer: [rows, ROW]."""
        pieces: list[jax.Array] = []
        for array, leaf in zip(arrays, leaves, strict=True):
            slices = array.reshape(leaf.slices, -1)
            missing = -leaf.slice_size % ROW
            if leaf.slices > 1 and missing:
                slices = jnp.pad(slices, [(0, 0), (0, missing)])
                missing = 0
            pieces += [slices.ravel(), *_of_length(missing, zeros)]
        left = self.rows * ROW - sum(piece.size for piece in pieces)
        return jnp.concatenate([*pieces, *_of_length(left, zeros)]).reshape(-1, ROW)

    def _rows_and_slices(self) -> tuple[np.ndarray, ...]:
        """The `sizes`, `slice_of_row` and `index_of_row` of every bin."""
        bins, slices = self.slices.shape
        sizes = np.zeros((bins, slices), np.uint32)
        of_row = np.zeros((2, bins, self.rows), np.uint32)
        for i, leaves in enumerate(self.leaves):
            own = [leaf for leaf in leaves for _ in range(leaf.slices)]
            sizes[i, : len(own)] = [leaf.slice_size for leaf in own]
            numbers = np.repeat(np.arange(len(own)), [_rows(leaf) for leaf in own])
            starts = np.concatenate([np.arange(_rows(leaf)) * ROW for leaf in own])
            of_row[0, i] = len(own) - 1  # rows that are left, all pruned
            of_row[0, i, : len(numbers)] = numbers
            of_row[1, i, : len(numbers)] = sizes[i, numbers] - 1 - starts
        return sizes, of_row[0].astype(np.int32), of_row[1]


def _of_length(length: int, pieces: dict[int, jax.Array]) -> list[jax.Array]:
    """Pieces that are so long together, the longest first."""
    chosen = []
    for own in sorted(pieces, reverse=True):
        chosen += [pieces[own]] * (length // own)
        length %= own
    return chosen


def bins_of(leaves: Sequence[Units]) -> list[Bins]:
    """The leaves that are packed; the others are searched where they are."""
    total = sum(math.prod(leaf.shape) for leaf in leaves)
    room = max(SMALLEST_BIN, total // BINS)
    kinds: dict[Any, list[int]] = {}
    for position, leaf in enumerate(leaves):
        if _is_packed(leaf, room):
            kinds.setdefault(_kind(leaf), []).append(position)
    return [
        _bins_of_kind(leaves, members, room)
        for members in kinds.values()
        if len(members) > 1
    ]


def _is_packed(leaf: Units, room: int) -> bool:
    """Whether a leaf is small, and known to be whole on a device."""
    fits = 0 < math.prod(leaf.shape) <= min(room, LARGEST_PACKED)
    return leaf.is_whole and fits and leaf.slice_axes in ((), (0,))


def _kind(leaf: Units) -> Any:
    """What all leaves of a bin have in common."""
    dtypes = tuple(array.dtype for array in leaf.data)
    return leaf.make_keys, leaf.signed, leaf.dtype, dtypes, leaf.first is None


def _bins_of_kind(leaves: Sequence[Units], members: Sequence[int], room: int) -> Bins:
    """Fills bins with leaves, in order."""
    filled: list[list[int]] = [[]]
    rows = [0]
    for position in members:
        own = _rows(leaves[position]) * leaves[position].slices
        if rows[-1] + own > room // ROW and filled[-1]:
            filled.append([])
            rows.append(0)
        filled[-1].append(position)
        rows[-1] += own
    ends = np.cumsum([leaf.slices for leaf in leaves])
    numbers = [
        np.concatenate([np.arange(ends[i] - leaves[i].slices, ends[i]) for i in own])
        for own in filled
    ]
    most = max(map(len, numbers))
    slices = [np.pad(own, (0, most - len(own)), constant_values=-1) for own in numbers]
    return Bins(
        [[leaves[i] for i in own] for own in filled], np.array(slices), max(rows)
    )


def _rows(leaf: Units) -> int:
    """How many rows a slice of a leaf takes."""
    return -(-leaf.slice_size // ROW)
