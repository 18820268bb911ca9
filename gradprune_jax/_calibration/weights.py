"""Weights: the parameters while they are pruned, matrix by matrix."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.views import Axes, View
from gradprune_jax._layouts import replicated
from gradprune_jax._scores import score_dtype

Turns = tuple[int, ...]
Key = tuple[int, tuple[int, ...]]  # a leaf and the indices of its layer


class Weights:
    """The weights as they are by now, and what was found for each of them.

    Args:
      parameters: the parameters that are read, by their positions among the leaves.
    """

    def __init__(self, parameters: Mapping[int, jax.Array]) -> None:
        self._parameters = parameters
        self._views: dict[int, View] = {}
        # The flat numbers of each layer: new weights, and masks or whatever was found.
        self._new: dict[Key, jax.Array] = {}
        self._found: dict[Key, jax.Array] = {}

    def value(self, view: View, turns: Turns, spec: Any) -> jax.Array:
        """What a program reads as a view of a weight; the new one once it is pruned.

        Args:
          view: the view.
          turns: those of the loops around it.
          spec: how its type says that it is laid out, in explicit sharding mode.
        """
        value = _value(view, self._flat(view, turns))
        if not any(spec):
            return value
        sharding: Any = self._parameters[view.leaf].sharding
        return jax.device_put(value, NamedSharding(sharding.mesh, spec))

    def matrix(self, product: Product, axes: Axes, turns: Turns) -> jax.Array:
        """The weights of a product along other axes, in float32 or wider."""
        matrix = product.view.along(self._flat(product.view, turns), axes)
        return matrix.astype(score_dtype(matrix.dtype))

    def replace(
        self, product: Product, axes: Axes, turns: Turns, matrix: jax.Array
    ) -> None:
        """Puts new weights in the place of those of a product, in their dtype."""
        dtype = self._parameters[product.view.leaf].dtype
        largest = float(jnp.finfo(dtype).max)
        if largest < jnp.finfo(matrix.dtype).max:
            within = jnp.clip(matrix, -largest, largest)
            matrix = jnp.where(jnp.isfinite(matrix), within, matrix)
        self._new[_key(product.view, turns)] = product.view.flattened(
            matrix.astype(dtype), axes
        )

    def note(
        self, product: Product, axes: Axes, turns: Turns, matrix: jax.Array
    ) -> None:
        """Keeps something of the shape of a product's weights: a mask, or norms."""
        self._views[product.view.leaf] = product.view
        flat = product.view.flattened(matrix, axes)
        self._found[_key(product.view, turns)] = flat

    def new(self) -> dict[int, Any]:
        """The new parameters, by their positions."""
        return self._whole(self._new)

    def found(self) -> dict[int, Any]:
        """What was kept of each parameter, in arrays of their shapes."""
        return self._whole(self._found)

    def _flat(self, view: View, turns: Turns) -> jax.Array:
        known = self._new.get(_key(view, turns))
        if known is not None:
            return known
        return view.flat(replicated(self._parameters[view.leaf]), turns)

    def _whole(self, flats: Mapping[Key, jax.Array]) -> dict[int, Any]:
        """The layers of each parameter, put together and laid out as it was."""
        whole = {}
        for leaf, keys in itertools.groupby(sorted(flats), key=lambda key: key[0]):
            parameter = self._parameters[leaf]
            layers = [flats[key] for key in keys]
            array = self._views[leaf].whole(layers, parameter.shape)
            if parameter.committed:
                array = jax.device_put(array, parameter.sharding)
            whole[leaf] = array
        return whole


def _key(view: View, turns: Sequence[int]) -> Key:
    return view.leaf, view.indices(turns)


@functools.partial(jax.jit, static_argnums=0)
def _value(view: View, flat: jax.Array) -> jax.Array:
    return view.value(flat)
