"""What is planned for one parameter."""

from __future__ import annotations

import dataclasses
from typing import Any

from gradprune_jax._structures import Structure


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What is planned for one parameter.

    Attributes:
      path: the parameter's path, keys joined by `/`.
      shape: its shape.
      dtype: its dtype.
      size: its number of weights.
      rule: the position of its rule, None if it stays dense.
      structure: which of its weights are kept together, None if it stays dense.
      final_sparsity: the sparsity of its units in the end, 0 if it stays dense; under
        global allocation that of all leaves of the rule together.
      units: the number of its units: weights, blocks or channels.
      kept_units: how many units it keeps; None under global allocation, where that
        depends on the weights of the other leaves.
      kept: how many weights it keeps; None under global allocation, and where its
        blocks have several sizes.
      is_missed: whether no rule matches it, although it is floating and has two axes
        or more. A rule without a schedule counts as a match.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    rule: int | None
    structure: Structure | None
    final_sparsity: float
    units: int
    kept_units: int | None
    kept: int | None
    is_missed: bool = False


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """What is planned for one group of coupled channels.

    Attributes:
      rule: the position of its rule.
      path: its name, as in `channel_groups`: the path and axis of its first member.
      units: how many channels it has.
      kept_units: how many it keeps in the end; None under global allocation.
    """

    rule: int
    path: str
    units: int
    kept_units: int | None
