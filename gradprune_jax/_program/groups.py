"""Groups: the dimensions of a function, and which parameters lie along them."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.tracing import Trace
from gradprune_jax._tables import some_of, text_table


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
          where: a regular expression that matches the whole name of a group, or a
            callable `(group) -> bool`.

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
          >>> [group.name for group in groups.select(r"w1\[.*").groups]
          ['w1[0]', 'w1[1]']
        """
        if isinstance(where, str):
            try:
                pattern = re.compile(where)
            except re.error as error:
                raise ValueError(
                    f"where is {where!r}, which is no regular expression: {error}."
                ) from None
            found = [group for group in self.groups if pattern.fullmatch(group.name)]
        else:
            found = [group for group in self.groups if where(group)]
        if not found:
            names = some_of([group.name for group in self.groups])
            raise ValueError(f"where is {where!r}, which matches none of: {names}.")
        return dataclasses.replace(self, groups=tuple(found))

    def __str__(self) -> str:
        rows = [
            (
                group.name,
                f"{group.size:,}",
                ", ".join(f"{path}[{axis}]" for path, axis in group.members),
                group.fixed,
            )
            for group in self.groups
        ]
        return text_table(("dimension", "size", "members", "fixed by"), rows)


def groups_of(
    analysis: Analysis, traced: Trace, names: Sequence[str]
) -> list[tuple[ChannelGroup, list[int]]]:
    """The groups of an analysed function, each with its units.

    Units that lie along the same axes of parameters are a group.
    """
    places: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(dict)
    for number, variable in enumerate(traced.program.inputs[: traced.params]):
        for axis, units in enumerate(analysis.axes[variable]):
            resolved = analysis.units.resolve(units, with_fixed=True)
            if resolved is None:
                continue
            for index, own in enumerate(resolved.tolist()):
                for unit in own:
                    if unit >= 0:
                        places[unit].setdefault((number, axis), []).append(index)
    alike: dict[Any, list[int]] = defaultdict(list)
    for unit, where in sorted(places.items()):
        alike[tuple(sorted(where)), bool(analysis.units.fixed[unit])].append(unit)
    groups = []
    for (where, is_fixed), alone in sorted(alike.items()):
        members = tuple((names[number], axis) for number, axis in where)
        indices = tuple(
            _sequences([places[unit][member] for unit in alone]) for member in where
        )
        inputs = traced.program.inputs
        path, axis = members[0]
        group = ChannelGroup(
            name=f"{path}[{axis}]",
            size=len(alone),
            members=members,
            fixed=analysis.reason(alone[0]) or "?" if is_fixed else "",
            shapes=tuple(tuple(analysis.shape(inputs[number])) for number, _ in where),
            indices=() if is_fixed else indices,
        )
        groups.append((group, alone))
    return _with_different_names(groups)


def _sequences(of_units: Sequence[Sequence[int]]) -> tuple[Sequence[int], ...]:
    """The indices of units as one sequence for each unit's first, second, ... index.

    Most are ranges, which take no memory for each index.
    """
    most = max(map(len, of_units))
    table = [[*own, *[-1] * (most - len(own))] for own in of_units]
    return tuple(map(_as_range, zip(*table, strict=True)))


def _as_range(indices: Sequence[int]) -> Sequence[int]:
    """The same numbers as a range, if they are evenly spaced."""
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step == 0:
        return indices
    even = range(indices[0], indices[0] + step * len(indices), step)
    return even if tuple(even) == indices else indices


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
