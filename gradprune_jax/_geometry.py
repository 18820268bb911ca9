"""Geometry: the blocks, units and slices of a leaf, from shapes alone.

A structure cuts a leaf into blocks of one shape. Each slice of a stacked leaf is cut as
if it were a leaf by itself, so the shapes and axes of structures are those of a slice.
"""

from __future__ import annotations

import math

from gradprune_jax._structures import (
    LARGEST_NM_GROUP,
    NM,
    Block,
    Channel,
    Shape,
    Structure,
)
from gradprune_jax._tables import by


def block_shape(structure: Structure, shape: Shape) -> Shape:
    """The weights that belong together, along every axis of a leaf.

    Args:
      structure: the structure.
      shape: the leaf's shape; of a stacked leaf, that of a slice.

    Returns:
      As many lengths as the leaf has axes. Blocks at the far edges may be shorter.

    Raises:
      ValueError: if the structure does not fit the shape.

    Examples:
      >>> block_shape(NM(2, 4), (3, 3, 64, 128)), block_shape(Block((4, 4)), (64, 128))
      ((1, 1, 4, 1), (4, 4))
      >>> block_shape(Channel(), (3, 3, 64, 128))
      (3, 3, 64, 1)
    """
    match structure:
        case NM(of=of, axis=axis):
            return _group_shape(shape, of, axis)
        case Block(shape=lengths):
            leading = len(shape) - len(lengths)
            block = (1,) * leading + lengths
            if leading < 0 or any(
                length > size > 0 for length, size in zip(block, shape, strict=True)
            ):
                raise ValueError(
                    f"a block of {by(lengths)} is larger than the {by(shape)} weights"
                )
            return block
        case Channel(axis=axis):
            axis = _axis_of(shape, axis)
            whole = [max(size, 1) for size in shape]
            return (*whole[:axis], 1, *whole[axis + 1 :])
        case _:
            return (1,) * len(shape)


def slice_shape(shape: Shape, stack_axis: int | None) -> Shape:
    """The shape of one slice of a stacked leaf; other leaves have their own shape."""
    if stack_axis is None:
        return shape
    stack_axis %= len(shape)
    return shape[:stack_axis] + shape[stack_axis + 1 :]


def leaf_block(structure: Structure, shape: Shape, stack_axis: int | None) -> Shape:
    """The block along every axis of a leaf, 1 along the axis of its slices.

    Raises:
      ValueError: if the structure does not fit the shape.
    """
    block = block_shape(structure, slice_shape(shape, stack_axis))
    if stack_axis is None:
        return block
    stack_axis %= len(shape)
    return (*block[:stack_axis], 1, *block[stack_axis:])


def unit_shape(shape: Shape, block: Shape) -> Shape:
    """How many blocks there are along every axis, the ragged ones too."""
    return tuple(
        math.ceil(size / length) for size, length in zip(shape, block, strict=True)
    )


def output_axis(axis: int | None, ndim: int) -> int:
    """The axis of output channels counted from the front; None is the last."""
    return (-1 if axis is None else axis) % ndim


def _axis_of(shape: Shape, axis: int) -> int:
    """The axis counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"there is no axis {axis} in a shape of {len(shape)} axes")
    return axis % len(shape)


def _group_shape(shape: Shape, of: int, axis: int) -> Shape:
    """A group of N:M: so many weights along one axis."""
    position = _axis_of(shape, axis)
    length = shape[position]
    if length % of:
        raise ValueError(
            f"groups of {of} do not divide axis {axis} of length {length}; "
            f"{_nearest_group(length, of)}"
        )
    return tuple(of if other == position else 1 for other in range(len(shape)))


def _nearest_group(length: int, of: int) -> str:
    """The advice for a length that `of` does not divide: the nearest that does."""
    fitting = [
        n for n in range(2, min(length, LARGEST_NM_GROUP) + 1) if length % n == 0
    ]
    if not fitting:
        return "no group does, leave this leaf out of the rule"
    nearest = min(fitting, key=lambda n: (abs(n - of), n))
    return f"the nearest that does is of={nearest}"
