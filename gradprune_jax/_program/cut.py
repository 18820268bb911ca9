"""Cut: how arrays and sizes become smaller, once it is known which units are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import replicated
from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.units import Axis
from gradprune_jax._program.zeros import on_host


def take(value: Any, indices: Sequence[np.ndarray | None]) -> Any:
    """The chosen indices along every axis of an array; None chooses all.

    On the host where the array is there, for JAX would compile each shape anew. NumPy's
    arrays stay such, and JAX's where they are laid out.
    """
    if all(own is None for own in indices):
        return value
    taken = on_host(value)
    is_here = isinstance(taken, np.ndarray)
    taken = taken if is_here else replicated(taken)
    for axis, own in enumerate(indices):
        if own is not None:
            taken = (np if is_here else jnp).take(taken, own, axis=axis)
    if is_traced(value) or not isinstance(value, jax.Array):
        return taken
    return _laid_out_like(value, taken)


def _laid_out_like(whole: jax.Array, taken: Any) -> jax.Array:
    """A part of an array on its devices, split as it is where the new shape can be."""
    if not whole.committed:
        return jnp.asarray(taken)
    try:
        whole.sharding.shard_shape(taken.shape)
    except ValueError:
        return jnp.asarray(taken)
    return jax.device_put(taken, whole.sharding)


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
