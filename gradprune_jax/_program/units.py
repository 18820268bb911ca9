"""Units: which indices of which axes are cut together.

Every index of an axis belongs to units, and is cut when one of its units is. The 64
features of a layer are 64 units, and so are the columns of its kernel and the rows of
the next one. Where an image of 7 x 7 x 64 is made flat, indices i, j, c belong to the
unit of c alone. Where heads and their widths are made one axis, index (h, d) belongs to
two units, that of h and that of d.

An index of no unit is never cut. Its unit is fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

# The units of each index of an axis, int [size, units], -1 where it has fewer; None for
# an axis of which nothing is cut, whose size need not be known.
Axis = np.ndarray | None


class UnitTable:
    """All units of a program: which are the same, and which are fixed."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, int)
        self._fixed = np.zeros(0, bool)
        # Units that turned out to be pairs: cut when one of the two is.
        self._pairs: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._parent)

    def new_axis(self, size: int) -> Axis:
        """An axis whose indices are units of their own."""
        return self._new(size).reshape(-1, 1)

    def resolve(self, axis: Axis, *, with_fixed: bool = False) -> Axis:
        """The same axis by the units that stand for all that are the same.

        Args:
          axis: the axis.
          with_fixed: whether to return fixed units too.
        """
        if axis is None:
            return None
        columns: list[np.ndarray] = []
        for column in axis.T:
            columns.extend(self._resolved(column))
        if not columns:
            return None
        resolved = np.stack(columns, 1)
        if not with_fixed:
            resolved = np.where(self._fixed[resolved], -1, resolved)
        resolved = resolved[:, (resolved >= 0).any(0)]
        return resolved if resolved.size else None

    @property
    def fixed(self) -> np.ndarray:
        """Which units are never cut, bool."""
        return self._fixed

    def fix(self, axis: Axis) -> None:
        """Never cut the indices of an axis."""
        resolved = self.resolve(axis)
        if resolved is not None:
            self._fixed[resolved[resolved >= 0]] = True

    def join(self, one: np.ndarray, other: np.ndarray) -> Axis:
        """Cut two resolved axes alike. Their sizes are the same."""
        if one.shape == other.shape and np.array_equal(one, other):
            return one
        if one.shape[1] == 1 == other.shape[1]:
            self._join_columns(one[:, 0], other[:, 0])
        else:
            for units, others in zip(one, other, strict=True):
                self._join_index(_present(units), _present(others))
        return self.resolve(one)

    def merge(self, axes: list[Axis], sizes: list[int]) -> Axis:
        """One axis in place of several, the last of which varies fastest."""
        if all(axis is None for axis in axes):
            return None
        merged = np.zeros((1, 0), int)
        for axis, size in zip(axes, sizes, strict=True):
            own = np.zeros((size, 0), int) if axis is None else axis
            merged = np.concatenate(
                [np.repeat(merged, size, 0), np.tile(own, (len(merged), 1))], 1
            )
        return merged

    def split(self, axis: Axis, outer: int, inner: int) -> tuple[Axis, Axis]:
        """Two axes in place of one, the second of which varies fastest."""
        resolved = self.resolve(axis)
        if resolved is None:
            return None, None
        outer_columns: list[np.ndarray] = []
        inner_columns: list[np.ndarray] = []
        columns = [*_without_duplicates(resolved).T]
        while columns:
            # Of the columns before, units may have become pairs.
            column, *more = self._resolved(columns.pop(0))
            columns = [*more, *columns]
            if (column < 0).all():
                continue
            table = column.reshape(outer, inner)
            if (table == table[:1]).all():
                inner_columns.append(table[0])
            elif (table == table[:, :1]).all():
                outer_columns.append(table[:, 0])
            elif (column >= 0).all() and np.unique(column).size == column.size:
                rows, across = self._new(outer), self._new(inner)
                pairs = itertools.product(rows.tolist(), across.tolist())
                self._pairs.update(zip(column.tolist(), pairs, strict=True))
                outer_columns.append(rows)
                inner_columns.append(across)
            else:
                self.fix(column.reshape(-1, 1))
        return _axis(outer_columns), _axis(inner_columns)

    def _new(self, size: int) -> np.ndarray:
        first = len(self._parent)
        new = np.arange(first, first + size)
        self._parent = np.concatenate([self._parent, new])
        self._fixed = np.concatenate([self._fixed, np.zeros(size, bool)])
        return new

    def _resolved(self, units: np.ndarray) -> list[np.ndarray]:
        """The units that stand for these, and for both of each pair."""
        present = units >= 0
        roots = np.where(present, self._roots(np.where(present, units, 0)), -1)
        if not self._pairs:
            return [roots]
        paired = np.array([root in self._pairs for root in roots.tolist()], bool)
        if not paired.any():
            return [roots]
        parts = [self._pairs.get(root, (root, -1)) for root in roots.tolist()]
        wide = max(map(len, parts))
        alike = np.array([[*own, *[-1] * (wide - len(own))] for own in parts])
        return [own for column in alike.T for own in self._resolved(column)]

    def _roots(self, units: np.ndarray) -> np.ndarray:
        while True:
            above = self._parent[units]
            if np.array_equal(above, units):
                return units
            self._parent[units] = self._parent[above]
            units = above

    def _join_columns(self, ones: np.ndarray, others: np.ndarray) -> None:
        """Cut the indices of two axes alike, where each has one unit or none."""
        differ = ones != others
        ones, others = ones[differ], others[differ]
        both = np.concatenate([ones, others])
        if (both >= 0).all() and np.unique(both).size == both.size:
            lower, upper = np.minimum(ones, others), np.maximum(ones, others)
            self._parent[upper] = lower  # none is fixed: they are resolved
            return
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            self._join_index(_present([one]), _present([other]))

    def _join_index(self, one: list[int], other: list[int]) -> None:
        """Cut one index with another."""
        one, other = self._of_index(one), self._of_index(other)
        if len(one) > len(other):
            one, other = other, one
        if len(one) == len(other):
            for pair in zip(one, other, strict=True):
                # As they stand now: a pair before may have joined one of them.
                lower, upper = sorted(self._roots(np.array(pair)).tolist())
                self._parent[upper] = lower
        elif len(one) == 1 and one[0] not in other:
            self._pairs[one[0]] = tuple(other)
        else:
            self._fixed[one] = True
            self._fixed[[unit for unit in other if unit not in one]] = True

    def _of_index(self, units: list[int]) -> list[int]:
        resolved = self.resolve(np.array([units], int).reshape(1, -1))
        return [] if resolved is None else list(dict.fromkeys(resolved[0].tolist()))


def _axis(columns: list[np.ndarray]) -> Axis:
    return np.stack(columns, 1) if columns else None


def _without_duplicates(axis: np.ndarray) -> np.ndarray:
    """The units of each index once, -1 in place of those that come again."""
    kept = axis.copy()
    for later in range(1, axis.shape[1]):
        again = (axis[:, :later] == axis[:, later : later + 1]).any(1)
        kept[again, later] = -1
    return kept


def _present(units: Iterable[int]) -> list[int]:
    return [int(unit) for unit in units if unit >= 0]
