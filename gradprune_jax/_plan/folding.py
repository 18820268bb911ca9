"""Folding: alike layers of a plan as one row, `layers/{0..39}/attention/kernel`."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from gradprune_jax._plan.leaf import GroupPlan, LeafPlan

Planned = TypeVar("Planned", LeafPlan, GroupPlan)

# A number that ends a key: `layers/0`, `layers_0`, `layers.0`; not one in a word, nor
# one that begins with 0 and could not be written back.
_NUMBER = re.compile(r"(?<!\d)(0|[1-9]\d*)(?=[/.]|$)")


@dataclasses.dataclass(frozen=True)
class Row(Generic[Planned]):
    """A row of a table: a leaf, or several that differ in a number of their paths.

    The same for groups of coupled channels.

    Attributes:
      path: the path, with all numbers in braces.
      leaf: the first of them.
      times: how many they are.
    """

    path: str
    leaf: Planned
    times: int


class _Alike(NamedTuple):
    """What leaves of one row have in common: a path around its number, and the rest."""

    before: str
    after: str
    leaf: Any


def fold(leaves: Sequence[Planned]) -> list[Row[Planned]]:
    """The rows of leaves, alike ones together, in the order of the first of each.

    Leaves are alike when they have everything but their paths in common, and the paths
    everything but one number.
    """
    alike: dict[_Alike, list[tuple[int, int]]] = defaultdict(list)
    for place, leaf in enumerate(leaves):
        for key, number in _readings(leaf):
            alike[key].append((number, place))
    rows, placed = [], set[int]()
    for place, leaf in enumerate(leaves):
        if place in placed:
            continue
        best: list[tuple[int, int]] = [(0, place)]
        path = leaf.path
        for key, _ in _readings(leaf):
            members = [member for member in alike[key] if member[1] not in placed]
            if len(members) > len(best):
                numbers = _in_short(sorted(number for number, _ in members))
                best, path = members, f"{key.before}{{{numbers}}}{key.after}"
        placed.update(member for _, member in best)
        rows.append(Row(path, leaf, len(best)))
    return rows


def unfolded(leaves: Sequence[Planned]) -> list[Row[Planned]]:
    """A row for each leaf."""
    return [Row(leaf.path, leaf, times=1) for leaf in leaves]


def _readings(leaf: Any) -> Iterator[tuple[_Alike, int]]:
    """Every number of a leaf's path, and what is left without it."""
    rest = dataclasses.replace(leaf, path="")
    for match in _NUMBER.finditer(leaf.path):
        before, after = leaf.path[: match.start()], leaf.path[match.end() :]
        yield _Alike(before, after, rest), int(match[0])


def _in_short(numbers: Sequence[int]) -> str:
    """Numbers in order, runs of three and more as first and last.

    Examples:
      >>> _in_short([0, 1, 2, 3, 7, 8])
      '0..3,7,8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(
        f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run))
        for run in runs
    )
