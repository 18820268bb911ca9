"""Weights: the parameters while they are pruned, matrix by matrix."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.views import Axes, View
from gradprune_jax._layouts import replicated

Layers = tuple[int, ...]


class Weights:
    """The weights as they are by now, and what was found for each of them.

    Args:
      parameters: the parameters that are read, by their positions among the leaves.
    """

    def __init__(self, parameters: Mapping[int, jax.Array]) -> None:
        self._parameters = parameters
        self._views: dict[int, View] = {}
        # The flat numbers of each layer: new weights, and masks or whatever was found.
        self._new: dict[tuple[int, Layers], jax.Array] = {}
        self._found: dict[tuple[int, Layers], jax.Array] = {}

    def value(self, view: View, layers: Layers, spec: Any) -> jax.Array:
        """What a program reads as a view of a weight; the new one once it is pruned.

        Args:
          view: the view.
          layers: the index of its layer in each loop.
          spec: how its type says that it is laid out, in explicit sharding mode.
        """
        value = _value(view, self._flat(view, layers))
        if not any(spec):
            return value
        sharding: Any = self._parameters[view.leaf].sharding
        return jax.device_put(value, NamedSharding(sharding.mesh, spec))

    def matrix(self, product: Product, axes: Axes, layers: Layers) -> jax.Array:
        """The weights of a product along other axes, in the parameter's dtype."""
        view = product.view
        return view.along(self._flat(view, layers), axes)

    def replace(
        self, product: Product, axes: Axes, layers: Layers, matrix: jax.Array
    ) -> None:
        """Puts new weights in the place of those of a product."""
        key = (product.view.leaf, layers)
        dtype = self._parameters[product.view.leaf].dtype
        self._new[key] = product.view.flattened(matrix.astype(dtype), axes)

    def note(
        self, product: Product, axes: Axes, layers: Layers, matrix: jax.Array
    ) -> None:
        """Keeps something of the shape of a product's weights: a mask, or norms."""
        leaf = product.view.leaf
        self._views[leaf] = product.view
        self._found[leaf, layers] = product.view.flattened(matrix, axes)

    def new(self) -> dict[int, Any]:
        """The new parameters, by their positions."""
        return self._whole(self._new)

    def found(self) -> dict[int, Any]:
        """What was kept of each parameter, in arrays of their shapes."""
        return self._whole(self._found)

    def _flat(self, view: View, layers: Layers) -> jax.Array:
        known = self._new.get((view.leaf, layers))
        if known is not None:
            return known
        return view.flat(replicated(self._parameters[view.leaf]), layers)

    def _whole(self, flats: Mapping[tuple[int, Layers], jax.Array]) -> dict[int, Any]:
        """The layers of each parameter, put together and laid out as it was."""
        keys = sorted(flats)
        whole = {}
        for leaf, own in itertools.groupby(keys, key=lambda key: key[0]):
            parameter = self._parameters[leaf]
            layers = [flats[key] for key in own]
            array = self._views[leaf].whole(layers, parameter.shape)
            whole[leaf] = jax.device_put(array, parameter.sharding)
        return whole


@functools.partial(jax.jit, static_argnums=0)
def _value(view: View, flat: jax.Array) -> jax.Array:
    return view.value(flat)
