"""Groups: the dimensions of a function, and which parameters lie along them."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.tracing import Trace
from gradprune_jax._tables import text_table


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Indices that are cut together, one of each member at a time.

    Attributes:
      name: the first member, as path and axis.
      size: how many there are.
      members: the parameters that have the dimension, as path and axis.
      fixed: why none of them can be cut; empty if they can.
      indices: for each member, for each unit of the group, its indices along that axis:
        several where it is that of several gates. Empty if fixed.
    """

    name: str
    size: int
    members: tuple[tuple[str, int], ...]
    fixed: str
    indices: tuple[tuple[tuple[int, ...], ...], ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """All groups of a function, in the order of the parameters.

    Attributes:
      groups: the groups.
      unknown: primitives that have no rule, and where each was met first.
    """

    groups: tuple[ChannelGroup, ...]
    unknown: tuple[tuple[str, str], ...]

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
    analysis: Analysis, traced: Trace, paths: Sequence[str]
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
        members = tuple((paths[number], axis) for number, axis in where)
        indices = tuple(
            tuple(tuple(places[unit][member]) for unit in alone) for member in where
        )
        path, axis = members[0]
        group = ChannelGroup(
            name=f"{path}[{axis}]",
            size=len(alone),
            members=members,
            fixed=analysis.reason(alone[0]) or "?" if is_fixed else "",
            indices=() if is_fixed else indices,
        )
        groups.append((group, alone))
    return _with_different_names(groups)


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
