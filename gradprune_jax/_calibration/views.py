"""Views: a parameter's numbers in another order, shape or dtype, followed step by step.

Between a parameter and the product that reads it a program may cast, reshape and
transpose it, and take one layer of it in a loop. So the axes of a parameter are split
into dimensions, and a view says which dimensions lie along each axis of a value. From
there its numbers can be put back.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The dimensions that lie along each axis, outermost first; none where the size is 1.
Axes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A value that holds the numbers of a parameter, or of one layer of it.

    Attributes:
      leaf: the position of the parameter among the leaves of the tree.
      sizes: the sizes of the parameter's dimensions, in row-major order.
      owners: for each dimension, the axis of the parameter that it is a part of.
      axes: of the value.
      layers: the axes of which it has one index alone, by a slice or in a loop.
      places: these indices; None where each turn of a loop takes another one.
      dtypes: the dtypes to which the numbers were cast, in order.
    """

    leaf: int
    sizes: tuple[int, ...]
    owners: tuple[int, ...]
    axes: Axes
    layers: Axes = ()
    places: tuple[int | None, ...] = ()
    dtypes: tuple[Any, ...] = ()

    @classmethod
    def of(cls, leaf: int, shape: Sequence[int]) -> View:
        """A parameter as it is."""
        owners = tuple(axis for axis, size in enumerate(shape) if size != 1)
        numbers = iter(range(len(owners)))
        axes = tuple(() if size == 1 else (next(numbers),) for size in shape)
        return cls(leaf, tuple(shape[axis] for axis in owners), owners, axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return shape_of(self.axes, self.sizes)

    def cast(self, dtype: Any) -> View:
        """The value in another dtype."""
        return dataclasses.replace(self, dtypes=(*self.dtypes, np.dtype(dtype)))

    def transposed(self, order: Sequence[int]) -> View:
        """The value with its axes in another order."""
        return dataclasses.replace(self, axes=tuple(self.axes[axis] for axis in order))

    def layer(self) -> View:
        """What a turn of a loop sees: one index of the first axis."""
        first, *axes = self.axes
        return dataclasses.replace(
            self,
            axes=tuple(axes),
            layers=(*self.layers, first),
            places=(*self.places, None),
        )

    def sliced(self, axis: int, start: int, stop: int) -> View | None:
        """A part of an axis, if the axis can be cut into parts of that length.

        Examples:
          >>> half = View.of(0, (6, 8)).sliced(1, 4, 8)  # the second half
          >>> half.shape, half.layers, half.places
          ((6, 4), ((1,),), (1,))
        """
        shape, length = list(self.shape), stop - start
        if not length or shape[axis] % length or start % length:
            return None
        shape[axis : axis + 1] = [shape[axis] // length, length]
        view = self.reshaped(shape)
        if view is None:
            return None
        return dataclasses.replace(
            view,
            axes=(*view.axes[:axis], *view.axes[axis + 1 :]),
            layers=(*view.layers, view.axes[axis]),
            places=(*view.places, start // length),
        )

    def indices(self, turns: Sequence[int]) -> tuple[int, ...]:
        """The index of each of `layers`, in these turns of the loops around it."""
        of_loops = iter(turns)
        return tuple(next(of_loops) if x is None else x for x in self.places)

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """The value in another shape, dimensions split where that needs it.

        Args:
          shape: with as many elements.

        Returns:
          The view; None if an axis of the new shape is no product of whole parts of
          dimensions, as where (4, 6) becomes (8, 3).

        Examples:
          >>> heads = View.of(0, (6, 12)).reshaped((6, 3, 4))
          >>> heads.sizes, heads.axes
          ((6, 3, 4), ((0,), (1,), (2,)))
        """
        view, position = self, 0
        axes: list[tuple[int, ...]] = []
        for size in shape:
            start, missing = position, size
            while missing > 1:
                own = view._in_order()[position]
                length = view.sizes[own]
                if missing % length:
                    if length % missing:
                        return None
                    view = view._split(own, missing)
                    length = missing
                missing //= length
                position += 1
            axes.append((start, position))
        order = view._in_order()
        found = tuple(tuple(order[start:stop]) for start, stop in axes)
        return dataclasses.replace(view, axes=found)

    def _in_order(self) -> list[int]:
        """The dimensions of the value, from the outermost to the innermost."""
        return [own for dimensions in self.axes for own in dimensions]

    def _split(self, dimension: int, outer: int) -> View:
        """The same value, one dimension split in two, the outer one of this size."""

        def renamed(axes: Axes) -> Axes:
            return tuple(
                tuple(new for own in dimensions for new in parts(own))
                for dimensions in axes
            )

        def parts(own: int) -> tuple[int, ...]:
            if own == dimension:
                return (own, own + 1)
            return (own + (own > dimension),)

        size = self.sizes[dimension]
        after = dimension + 1
        return dataclasses.replace(
            self,
            sizes=(*self.sizes[:dimension], outer, size // outer, *self.sizes[after:]),
            owners=(*self.owners[:after], *self.owners[dimension:]),
            axes=renamed(self.axes),
            layers=renamed(self.layers),
        )

    @property
    def _whole_axes(self) -> Axes:
        """The one axis of the whole parameter as a flat array."""
        return (tuple(range(len(self.sizes))),)

    @property
    def flat_axes(self) -> Axes:
        """The axes of one layer as a flat array, in the parameter's own order."""
        taken = {own for dimensions in self.layers for own in dimensions}
        return (tuple(own for own in range(len(self.sizes)) if own not in taken),)

    def flat(self, parameter: jax.Array, turns: Sequence[int]) -> jax.Array:
        """The numbers of one layer of the parameter, [weights]."""
        axes = (*self.layers, *self.flat_axes)
        layers = rearranged(parameter, self.sizes, self._whole_axes, axes)
        return _layer(layers, self.indices(turns))

    def value(self, flat: jax.Array) -> jax.Array:
        """The value, from the flat numbers of its layer."""
        array = rearranged(flat, self.sizes, self.flat_axes, self.axes)
        for dtype in self.dtypes:
            array = array.astype(dtype)
        return array

    def along(self, flat: jax.Array, axes: Axes) -> jax.Array:
        """The flat numbers of a layer along other axes."""
        return rearranged(flat, self.sizes, self.flat_axes, axes)

    def flattened(self, array: jax.Array, axes: Axes) -> jax.Array:
        """The flat numbers of a layer, from an array along other axes."""
        return rearranged(array, self.sizes, axes, self.flat_axes)

    def whole(self, layers: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
        """Puts the parameter together.

        Args:
          layers: the flat numbers of every layer, in the order of their indices.
          shape: that of the parameter.
        """
        stacked = jnp.stack(layers).reshape(*shape_of(self.layers, self.sizes), -1)
        axes = (*self.layers, *self.flat_axes)
        whole = rearranged(stacked, self.sizes, axes, self._whole_axes)
        return whole.reshape(shape)


def shape_of(axes: Axes, sizes: Sequence[int]) -> tuple[int, ...]:
    """The shape of an array along whose axes these dimensions lie."""
    return tuple(math.prod(sizes[own] for own in dimensions) for dimensions in axes)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rearranged(
    array: jax.Array, sizes: tuple[int, ...], before: Axes, after: Axes
) -> jax.Array:
    """Puts the dimensions of an array along other axes.

    Args:
      array: the array.
      sizes: of all dimensions.
      before: the axes of the array.
      after: the same dimensions, along the axes of the result.

    Returns:
      An array of the same elements.
    """
    given = [own for dimensions in before for own in dimensions]
    wanted = [own for dimensions in after for own in dimensions]
    split = array.reshape([sizes[own] for own in given])
    ordered = split.transpose([given.index(own) for own in wanted])
    return ordered.reshape(shape_of(after, sizes))


@jax.jit
def _layer(array: jax.Array, indices: tuple[Any, ...]) -> jax.Array:
    """The elements at an index of each of the first axes; one program for all."""
    for index in indices:
        array = jax.lax.dynamic_index_in_dim(array, index, keepdims=False)
    return array
