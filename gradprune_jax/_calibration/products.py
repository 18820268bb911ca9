r"""Products: the inputs that meet a weight, one row a sample.

A dense layer, an attention projection, an expert and a convolution all compute

$$
y_{g, n, o} = \sum_i x_{g, n, i} w_{g, o, i}
$$

for groups g (experts, groups of a convolution), samples n, outputs o and inputs i. The
inputs of a convolution are the patches of its image.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax._calibration.views import Axes, View
from gradprune_jax._program import Step


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A step that multiplies the numbers of one parameter by inputs.

    Attributes:
      step: the operation.
      variable: the operand that is a view of the parameter.
      inputs: the other operand.
      view: the view.
      groups: the dimensions of the parameter that are groups, outermost first.
      outputs: those that are outputs.
      features: those that are inputs, as they lie in the rows of `rows`.
    """

    step: Step
    variable: int
    inputs: int
    view: View
    groups: tuple[int, ...]
    outputs: tuple[int, ...]
    features: tuple[int, ...]

    @property
    def name(self) -> str:
        """The primitive, and where it stands in the user's code."""
        return f"{self.step.primitive.name}, {self.step.source}"

    @property
    def input_axes(self) -> tuple[int, ...]:
        """The axes of the parameter along which inputs alone lie."""
        owners = self.view.owners
        layers = (own for dimensions in self.view.layers for own in dimensions)
        others = {owners[own] for own in (*self.groups, *self.outputs, *layers)}
        inputs = {owners[own] for own in self.features}
        return tuple(sorted(inputs - others))

    def axes(self, last: int | None = None) -> Axes:
        """The axes of the weights as a method sees them: groups, outputs, inputs.

        Args:
          last: the axis of the parameter whose dimensions are to be neighbours, last
            among the inputs; by default inputs are in the parameter's own order.
        """
        owners = self.view.owners
        inputs = sorted(self.features, key=lambda own: (owners[own] == last, own))
        return (self.groups, tuple(sorted(self.outputs)), tuple(inputs))

    def rows(self, inputs: jax.Array, axes: Axes) -> jax.Array:
        """The inputs as rows: [groups, samples, inputs], with inputs as in `axes`."""
        if self.step.primitive.name == "dot_general":
            rows = self._rows_of_dot(inputs)
        else:
            rows = self._rows_of_convolution(inputs)
        sizes = [self.view.sizes[own] for own in self.features]
        split = rows.reshape(*rows.shape[:2], *sizes)
        order = [2 + self.features.index(own) for own in axes[2]]
        return split.transpose(0, 1, *order).reshape(rows.shape)

    def _rows_of_dot(self, inputs: jax.Array) -> jax.Array:
        """Batch axes are groups, contracted ones are inputs, the others samples."""
        position = list(self.step.operands).index(self.inputs)
        contracted, batch = (
            pair[position] for pair in self.step.params["dimension_numbers"]
        )
        own = (*batch, *contracted)
        samples = tuple(axis for axis in range(inputs.ndim) if axis not in own)
        ordered = inputs.transpose(*batch, *samples, *contracted)
        lengths = (batch, samples, contracted)
        return ordered.reshape(
            [math.prod(inputs.shape[axis] for axis in axes) for axes in lengths]
        )

    def _rows_of_convolution(self, image: jax.Array) -> jax.Array:
        """Every place of the kernel is a sample, what it covers there are inputs."""
        groups = self.step.params["feature_group_count"]
        spec = self.step.params["dimension_numbers"].rhs_spec
        kernel = [self.view.shape[axis] for axis in spec[2:]]
        patches = _patches(image, self.step.params, kernel)
        batch, channels, elements, places = patches.shape
        split = patches.reshape(batch, groups, channels // groups, elements, places)
        ordered = split.transpose(1, 0, 4, 2, 3)
        return ordered.reshape(groups, batch * places, channels // groups * elements)


def _patches(image: jax.Array, params: Any, kernel: Sequence[int]) -> jax.Array:
    """What a kernel covers at each place: [batch, channels, elements, places]."""
    spec = params["dimension_numbers"].lhs_spec
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    padding = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(
            params["padding"], params["lhs_dilation"], strict=True
        )
    ]
    zero = jnp.zeros((), image.dtype)
    image = jax.lax.pad(image.transpose(spec), zero, [(0, 0, 0), (0, 0, 0), *padding])
    batch, channels, *extent = image.shape
    places = [
        max((size - (length - 1) * dilation - 1) // stride + 1, 0)
        for size, length, dilation, stride in zip(
            extent, kernel, dilations, strides, strict=True
        )
    ]
    if not math.prod(places):
        return jnp.zeros((batch, channels, math.prod(kernel), 0), image.dtype)
    elements = []
    for offsets in itertools.product(*map(range, kernel)):
        start = [x * dilation for x, dilation in zip(offsets, dilations, strict=True)]
        stop = [
            first + (count - 1) * stride + 1
            for first, count, stride in zip(start, places, strides, strict=True)
        ]
        covered = jax.lax.slice(
            image, (0, 0, *start), (batch, channels, *stop), (1, 1, *strides)
        )
        elements.append(covered.reshape(batch, channels, math.prod(places)))
    return jnp.stack(elements, axis=2)


def product_of(step: Step, position: int, view: View) -> Product | None:
    """The product of a step whose operand at a position is a view of a parameter.

    Returns:
      The product; None if the step is none, or the parameter is not its weight.
    """
    if step.primitive.name == "dot_general":
        return _product_of_dot(step, position, view)
    is_kernel = step.primitive.name == "conv_general_dilated" and position == 1
    if is_kernel and step.params["batch_group_count"] == 1:
        return _product_of_convolution(step, view)
    return None


def _product_of_dot(step: Step, position: int, view: View) -> Product:
    contracted, batch = (pair[position] for pair in step.params["dimension_numbers"])
    own = (*contracted, *batch)
    free = [axis for axis in range(len(view.axes)) if axis not in own]

    def along(axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(own for axis in axes for own in view.axes[axis])

    return Product(
        step,
        step.operands[position],
        step.operands[1 - position],
        view,
        groups=along(batch),
        outputs=along(free),
        features=along(contracted),
    )


def _product_of_convolution(step: Step, view: View) -> Product | None:
    """Outputs are split in groups; None where dimensions can't be."""
    spec, shape = step.params["dimension_numbers"].rhs_spec, view.shape
    groups = step.params["feature_group_count"]
    outputs, *others = (shape[axis] for axis in spec)
    in_groups = (groups, outputs // groups, *others)
    split = view.transposed(spec).reshaped(in_groups)
    if split is None:
        return None
    # Along the kernel's own axes, with a finer list of dimensions.
    merged = (split.axes[0] + split.axes[1], *split.axes[2:])
    order = [spec.index(axis) for axis in range(len(shape))]
    inputs, kernel = step.operands
    return Product(
        step,
        kernel,
        inputs,
        dataclasses.replace(split, axes=tuple(merged[axis] for axis in order)),
        groups=split.axes[0],
        outputs=split.axes[1],
        features=tuple(own for axis in split.axes[2:] for own in axis),
    )
