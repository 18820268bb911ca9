"""Coupled channels: a dimension of the whole network, dropped in all of its leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gradprune_jax._program import ChannelGroup, ChannelGroups
from gradprune_jax._structures.checks import Pool, Shape, check_index, check_pool


@dataclasses.dataclass(frozen=True)
class CoupledChannels:
    r"""Channels of a whole network, dropped in every parameter that has them.

    A kernel's column of zeros is not dead while the bias of that channel lives, and a
    channel of a residual trunk is made by many layers. So the units of a group of
    `channel_groups` are dropped together, in all members of the group: kernels that
    write the channel and kernels that read it, biases, scales and shifts. `shrink` then
    cuts all of them out.

    A unit's score is pooled over its weights in all kernels of the group, which are
    its members of two or more axes (all members, if there are none). At sparsity s a
    group of n units keeps $n - \mathrm{round}(s n)$, at least one. Where that is fewer
    than n, it is rounded to the nearest multiple of `round_to`: up from the middle, at
    least one multiple and at most n. A group smaller than `round_to` stays whole.

    Under global allocation the units of all groups are ranked together, and
    `min_density` is the fraction that each group keeps at least. What a group keeps is
    rounded afterwards, so the sum may differ by half of `round_to` for each group.

    A rule with this structure and `where=None` prunes every member of the groups. A
    group of which `where` takes no member stays whole; one of which it takes some and
    not all is an error, for what is left out could keep a channel alive. To prune
    fewer groups, give `groups.select(...)`.

    Attributes:
      groups: what `channel_groups` found, with the same tree of parameters that is
        pruned. Fixed groups are ignored.
      pool: `"mean"` or `"max"`, how the magnitudes of a unit's weights make its score.
        The mean is summed in integers, so that it is the same on every mesh.
      round_to: the number of which sizes are multiples, such as 8 or 128 for hardware.

    Raises:
      ValueError: if a field is not one of these, or no group is free.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> def fn(params, x):
      ...     hidden = jnp.maximum(x @ params["w1"] + params["b1"], 0)
      ...     return hidden @ params["w2"]
      >>> params = {
      ...     "w1": jnp.array([[4.0, 1.0]]), "b1": jnp.ones(2), "w2": jnp.ones((2, 1))
      ... }
      >>> x = jnp.ones((1, 1))
      >>> structure = CoupledChannels(gp.channel_groups(fn, params, x))
      >>> pruned, _ = gp.prune(params, 0.5, structure=structure)
      >>> print(pruned["w1"], pruned["b1"], pruned["w2"].ravel())
      [[4. 0.]] [1. 0.] [1. 0.]
      >>> print(gp.shrink(fn, pruned, x).params["w1"])
      [[4.]]

    References:
      Fang et al., [DepGraph: towards any structural
      pruning](https://arxiv.org/abs/2301.12900), 2023.
    """

    groups: ChannelGroups
    pool: Pool = "mean"
    round_to: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.groups, ChannelGroups):
            raise ValueError(
                f"groups is {self.groups!r}; it must be what channel_groups(fn, "
                "params, *inputs) returns."
            )
        if not self.groups.free:
            raise ValueError(
                "none of the groups can be cut, so there is nothing to prune:\n"
                f"{self.groups}"
            )
        check_pool(self.pool)
        object.__setattr__(self, "round_to", check_index("round_to", self.round_to))
        if self.round_to < 1:
            raise ValueError(f"round_to is {self.round_to}; it must be at least 1.")

    def __str__(self) -> str:
        multiples = f", multiples of {self.round_to}" if self.round_to > 1 else ""
        return f"coupled channels, {self.pool}{multiples}"

    @functools.cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every member of the free groups, by its name."""
        return {
            name: shape
            for group in self.groups.free
            for (name, _), shape in zip(group.members, group.shapes, strict=True)
        }

    def groups_among(self, names: Collection[str]) -> list[ChannelGroup]:
        """The free groups that have members among these parameters.

        Raises:
          ValueError: if a group has some of its members among them, and others not.
        """
        found = []
        for group in self.groups.free:
            members = {name for name, _ in group.members}
            missing = sorted(members.difference(names))
            if len(missing) == len(members):
                continue
            if missing:
                raise ValueError(
                    f"the rule prunes the channels of {group.name!r} and leaves out "
                    f"{', '.join(map(repr, missing))}, which lies along them too and "
                    "could keep them alive. Let the rule take all members (where=None, "
                    "and no rule before it that takes them), or prune fewer groups: "
                    "groups.select(...)."
                )
            found.append(group)
        return found


def kernels(group: ChannelGroup) -> list[bool]:
    """Which members of a group say how large its units are.

    Those of two or more axes; if there are none, all of them.
    """
    are_kernels = [len(shape) >= 2 for shape in group.shapes]
    return are_kernels if any(are_kernels) else [True] * len(are_kernels)


def units_of_indices(indices: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """The units of every index of an axis: int [most, size], -1 where it has fewer.

    Args:
      indices: those of each unit, as `ChannelGroup.indices` has them for one member.
      size: of the axis.

    Examples:
      >>> units_of_indices([range(0, 2), range(2, 4)], 5)  # two gates, and one more
      array([[ 0,  1,  0,  1, -1]])
    """
    of_index: list[list[int]] = [[] for _ in range(size)]
    for sequence in indices:
        for unit, index in enumerate(sequence):
            if index >= 0:
                of_index[index].append(unit)
    most = max(map(len, of_index))
    return np.array([[*own, *[-1] * (most - len(own))] for own in of_index], int).T
