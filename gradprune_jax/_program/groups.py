"""Groups: the dimensions of a function, and which parameters lie along them."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.tracing import Trace
from gradprune_jax._tables import some_of, text_table

# A parameter by its position, one of its axes, and which of the units that an index of
# it has: heads and their widths may lie along one axis, and are two groups.
Place = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Indices that are cut together, one of each member at a time.

    Attributes:
      name: the first member, as path and axis.
      size: how many there are: its units.
      members: the parameters that have the dimension, as path and axis.
      fixed: why none of them can be cut; empty if they can.
      shapes: the shape of each member.
      indices: for each member, which of its indices each unit has: sequences with one
        index a unit, -1 where it has fewer. There are several sequences where a unit
        has an index in each of several gates. Empty if fixed.
    """

    name: str
    size: int
    members: tuple[tuple[str, int], ...]
    fixed: str
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(repr=False)
    indices: tuple[tuple[Sequence[int], ...], ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """All groups of a function, in the order of the parameters.

    Attributes:
      groups: the groups.
      unknown: primitives that have no rule, and where each was met first.
    """

    groups: tuple[ChannelGroup, ...]
    unknown: tuple[tuple[str, str], ...]

    @property
    def free(self) -> tuple[ChannelGroup, ...]:
        """The groups that can be cut."""
        return tuple(group for group in self.groups if not group.fixed)

    def select(self, where: str | Callable[[ChannelGroup], bool]) -> ChannelGroups:
        r"""Only some of the groups, to prune no others.

        Args:
          where: a regular expression that matches a whole member, path and axis as they
            are printed, or a callable `(group) -> bool`.

        Returns:
          The groups that match.

        Raises:
          ValueError: if none does, or `where` is no regular expression.

        Examples:
          >>> import jax.numpy as jnp, gradprune_jax as gp
          >>> def fn(params, x):
          ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
          >>> params = {"w1": jnp.ones((2, 3)), "w2": jnp.ones((3, 5))}
          >>> groups = gp.channel_groups(fn, params, jnp.ones((1, 2)))
          >>> [group.name for group in groups.select(r"w2\[0\]").groups]
          ['w1[1]']
        """
        if isinstance(where, str):
            try:
                pattern = re.compile(where)
            except re.error as error:
                raise ValueError(
                    f"where is {where!r}, which is no regular expression: {error}."
                ) from None
            found = [
                group
                for group in self.groups
                if any(map(pattern.fullmatch, map(_printed, group.members)))
            ]
        else:
            found = [group for group in self.groups if where(group)]
        if not found:
            members = [_printed(each) for own in self.groups for each in own.members]
            raise ValueError(
                f"where is {where!r}, which matches none of: {some_of(members)}."
            )
        return dataclasses.replace(self, groups=tuple(found))

    def __str__(self) -> str:
        rows = [
            (
                group.name,
                f"{group.size:,}",
                ", ".join(map(_printed, group.members)),
                group.fixed,
            )
            for group in self.groups
        ]
        lines = [text_table(("dimension", "size", "members", "fixed by"), rows)]
        if self.unknown:
            met = ", ".join(f"{name} ({source})" for name, source in self.unknown)
            lines.append(f"Without a rule, so nothing is cut at: {met}.")
        return "\n".join(lines)


def _printed(member: tuple[str, int]) -> str:
    path, axis = member
    return f"{path}[{axis}]"


def groups_of(
    analysis: Analysis, traced: Trace, names: Sequence[str]
) -> list[tuple[ChannelGroup, list[int]]]:
    """The groups of an analysed function, each with its units.

    Units that lie along the same axes of parameters, in the same way, are a group.
    """
    inputs = traced.program.inputs[: traced.params]
    # A kind is a set of axes. Units begin as free or fixed, along none.
    kind_of_unit = analysis.units.fixed.astype(int)
    kinds: list[tuple[Place, ...]] = [(), ()]
    is_fixed = [False, True]
    lying: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for number, variable in enumerate(inputs):
        for axis, units in enumerate(analysis.axes[variable]):
            resolved = analysis.units.resolve(units, with_fixed=True)
            if resolved is None:
                continue
            lying[number, axis] = _units_and_indices(resolved)
            for column, units_there in enumerate(resolved.T):
                here = np.unique(units_there[units_there >= 0])
                before, own = np.unique(kind_of_unit[here], return_inverse=True)
                kind_of_unit[here] = len(kinds) + own
                kinds += [(*kinds[old], (number, axis, column)) for old in before]
                is_fixed += [is_fixed[old] for old in before]
    groups = []
    for places, kind in sorted((places, kind) for kind, places in enumerate(kinds)):
        alone = np.flatnonzero(kind_of_unit == kind)
        if not places or not alone.size:
            continue
        axes = tuple(dict.fromkeys((number, axis) for number, axis, _ in places))
        members = tuple((names[number], axis) for number, axis in axes)
        reason = analysis.reason(int(alone[0])) or "?" if is_fixed[kind] else ""
        group = ChannelGroup(
            name=_printed(members[0]),
            size=len(alone),
            members=members,
            fixed=reason,
            shapes=tuple(tuple(analysis.shape(inputs[n])) for n, _ in axes),
            indices=()
            if reason
            else tuple(_sequences(alone, *lying[place]) for place in axes),
        )
        groups.append((group, alone.tolist()))
    return _with_different_names(groups)


def _units_and_indices(resolved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each unit of an axis with each of its indices, in order: two vectors."""
    index = np.repeat(np.arange(len(resolved)), resolved.shape[1])
    pairs = np.stack([resolved.ravel(), index])[:, resolved.ravel() >= 0]
    units, indices = np.unique(pairs, axis=1)
    return units, indices


def _sequences(
    alone: np.ndarray, units: np.ndarray, indices: np.ndarray
) -> tuple[Sequence[int], ...]:
    """The first, the second, ... index of every unit, -1 where it has fewer.

    Most are ranges, which take no memory for each index.
    """
    is_own = np.isin(units, alone)
    units, indices = np.searchsorted(alone, units[is_own]), indices[is_own]
    first = np.searchsorted(units, np.arange(len(alone)))
    nth = np.arange(len(units)) - first[units]
    table = np.full((nth.max() + 1, len(alone)), -1)
    table[nth, units] = indices
    return tuple(map(_as_range, table.tolist()))


def _as_range(indices: list[int]) -> Sequence[int]:
    """The same numbers as a range if they are evenly spaced, else as a tuple."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step == 0:
        return tuple(indices)
    even = range(indices[0], indices[0] + step * len(indices), step)
    return even if list(even) == indices else tuple(indices)


def _with_different_names(
    groups: list[tuple[ChannelGroup, list[int]]],
) -> list[tuple[ChannelGroup, list[int]]]:
    """Number the groups of one first member, which have an axis together."""
    met: dict[str, int] = defaultdict(int)
    named = []
    for group, units in groups:
        met[group.name] += 1
        number = met[group.name]
        name = group.name if number == 1 else f"{group.name} {number}"
        named.append((dataclasses.replace(group, name=name), units))
    return named
