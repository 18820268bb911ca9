"""Cut: how arrays and sizes become smaller, once it is known which units are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import on_host


def take(value: Any, indices: Sequence[np.ndarray | None]) -> Any:
    """The chosen indices along every axis of an array; None chooses all.

    On the host where the array is there, for JAX would compile each shape anew.
    """
    if all(own is None for own in indices):
        return value
    taken = on_host(value)
    xp = np if isinstance(taken, np.ndarray) else jnp
    for axis, own in enumerate(indices):
        if own is not None:
            taken = xp.take(taken, own, axis=axis)
    return jnp.asarray(taken)


class Cut:
    """The variables of an analysed program without the units that are cut.

    Attributes:
      analysis: of the program.
      values: those of the variables that were computed, while a program runs.
    """

    def __init__(
        self, analysis: Analysis, values: Mapping[int, Any] | None = None
    ) -> None:
        self.analysis = analysis
        self.values = {} if values is None else values

    def stays(self, axis: Axis) -> np.ndarray | None:
        """Which indices of an axis stay, bool [size]; None for all."""
        if self.analysis.units.resolve(axis) is None:
            return None
        stays = ~self.analysis.is_cut(axis)
        return None if stays.all() else stays

    def indices(self, axis: Axis) -> np.ndarray | None:
        """The indices of an axis that stay; None for all."""
        stays = self.stays(axis)
        return None if stays is None else np.flatnonzero(stays)

    def size(self, axis: Axis, size: Any) -> Any:
        """How many indices of an axis stay."""
        stays = self.stays(axis)
        return size if stays is None else int(stays.sum())

    def shape(self, variable: int) -> tuple[Any, ...]:
        """The shape of a variable after the cut."""
        axes, shape = self.analysis.axes[variable], self.analysis.shape(variable)
        return tuple(map(self.size, axes, shape))

    def array(self, variable: int, value: Any) -> Any:
        """The value of a variable without what is cut."""
        indices = [*map(self.indices, self.analysis.axes[variable])]
        return take(value, indices)

    def keep(
        self, variables: Sequence[int], stays: Sequence[Sequence[np.ndarray | None]]
    ) -> None:
        """Cut nothing of what stays.

        Args:
          variables: some variables.
          stays: for each of them, for each axis, which indices stay; None for all.
        """
        for variable, per_axis in zip(variables, stays, strict=False):
            axes = self.analysis.axes[variable]
            for axis, own in zip(axes, per_axis, strict=True):
                resolved = self.analysis.units.resolve(axis)
                if resolved is not None:
                    kept = resolved if own is None else resolved[own]
                    self.analysis.cut[kept[kept >= 0]] = False
