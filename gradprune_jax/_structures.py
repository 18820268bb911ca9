"""Structures: which weights are kept or dropped together.

A structure cuts a leaf into blocks of one shape. Blocks and channels are units, kept or
dropped whole; a single weight is the smallest of them. Under N:M the block is a group
of weights that competes within itself.

Here is only the geometry. A stacked leaf is cut as each of its slices would be alone,
so shapes and axes are those of a slice.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, Literal, get_args

Shape = tuple[int, ...]
Pool = Literal["mean", "max"]

# The weights of an N:M group are counted in the float32 arithmetic of sparsities.
LARGEST_GROUP = 256


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight by itself, ranked by its magnitude: the paper's choice.

    Examples:
      >>> Unstructured().block_shape((3, 4))
      (1, 1)
    """

    def block_shape(self, shape: Shape) -> Shape:
        """The weights that belong together, along every axis of a leaf.

        Args:
          shape: the leaf's shape; of a stacked leaf, that of a slice.

        Returns:
          As many lengths as the leaf has axes; the last block along an axis may be cut
          short by the leaf's edge.

        Raises:
          ValueError: if the structure does not fit the shape.
        """
        return (1,) * len(shape)

    def __str__(self) -> str:
        return "Unstructured"


@dataclasses.dataclass(frozen=True)
class NM:
    r"""N:M sparsity: of every group of neighbours so many are kept, the largest.

    Gradual, from dense to N:M: when the schedule stands at sparsity $s$ of its
    final $s_f$, each group keeps

    $$
    M - \lfloor (M - N) s / s_f \rfloor
    $$

    weights, so exactly N from `end_step` on. The final sparsity is $1 - N / M$;
    a schedule that ends at another is an error.

    Hardware wants groups along the axis over which a matrix product sums. The default
    is that of most kernels of Flax, Haiku and Keras; Equinox and PyTorch put outputs
    first.

    ==============================================  ========================  ==========
    kernel                                          shape                     `axis`
    ==============================================  ========================  ==========
    `Dense`, `nnx.Linear`                       (in, out)                 -2
    `Conv`                                        (height, width, in, out)  -2
    attention's query, key and value                (in, heads, dim)          -3
    attention's out                                 (heads, dim, out)         -2
    `DenseGeneral` from axes A to axes B          (\*A, \*B)                last of A
    `Embed`                                       (entries, features)       -1
    Equinox's and PyTorch's `Linear`              (out, in)                 1
    Equinox's and PyTorch's `Conv2d`              (out, in, height, width)  1
    Equinox's `GRUCell`, `LSTMCell`             (gates, in)               1
    ==============================================  ========================  ==========

    Attributes:
      keep: N, the weights that each group keeps, in [1, `of` - 1].
      of: M, the weights of a group, in [2, 256].
      axis: the axis along which neighbours form groups. Of a stacked leaf, an axis of
        its slices.

    Raises:
      ValueError: if a field is outside its range.

    Examples:
      >>> NM(keep=2, of=4).block_shape((3, 3, 64, 128))
      (1, 1, 4, 1)
      >>> NM(keep=2, of=4, axis=1).block_shape((128, 64, 3, 3))  # Equinox, PyTorch
      (1, 4, 1, 1)

    References:
      Mishra et al., [Accelerating sparse deep neural
      networks](https://arxiv.org/abs/2104.08378), 2021.
    """

    keep: int = 2
    of: int = 4
    axis: int = -2

    def __post_init__(self) -> None:
        for name in ("keep", "of", "axis"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        if not 2 <= self.of <= LARGEST_GROUP:
            raise ValueError(
                f"of is {self.of}, the weights of a group of NM; it must be in "
                f"[2, {LARGEST_GROUP}]."
            )
        if not 1 <= self.keep < self.of:
            raise ValueError(
                f"keep is {self.keep}, the weights kept of {self.of}; it must be in "
                f"[1, {self.of - 1}]."
            )

    def block_shape(self, shape: Shape) -> Shape:
        """One group: `of` weights along `axis`."""
        axis = _axis_of(shape, self.axis)
        length = shape[axis]
        if length % self.of:
            raise ValueError(
                f"groups of {self.of} do not divide axis {self.axis} of length "
                f"{length}; {_nearest_group(length, self.of)}"
            )
        return _along(axis, self.of, shape)

    def __str__(self) -> str:
        return f"{self.keep}:{self.of} on axis {self.axis}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Rectangular blocks on the last axes, kept or dropped whole.

    A block's score is the mean or the largest of its weights' magnitudes. Blocks at the
    far edges may be ragged: they are scored by the weights that they have. Of n blocks
    a sparsity s keeps n - round(s n), at least one; ties go to the lower block in C
    order.

    Attributes:
      shape: the lengths of a block along the last axes, such as `(4, 4)`; 1 along all
        others. On a convolution's HWIO kernel these two are input and output channels.
      pool: `"mean"` or `"max"`. The mean is summed in integers, so that it does not
        depend on the order of summation, and is rounded down to float32.

    Raises:
      ValueError: if a field is not one of these.

    Examples:
      >>> Block((4, 4)).block_shape((3, 3, 64, 128))
      (1, 1, 4, 4)

    References:
      Narang et al., [Block-sparse recurrent neural
      networks](https://arxiv.org/abs/1711.02782), 2017.
    """

    shape: Shape
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        try:
            shape = tuple(operator.index(length) for length in self.shape)
        except TypeError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ValueError(
                f"the shape of Block is {self.shape!r}; it must be a tuple of positive "
                "integers, such as (4, 4)."
            )
        object.__setattr__(self, "shape", shape)
        _check_pool(self.pool)

    def block_shape(self, shape: Shape) -> Shape:
        """The block's own lengths on the last axes, 1 on all before them."""
        leading = len(shape) - len(self.shape)
        block = (1,) * leading + self.shape
        if leading < 0 or any(
            length > size > 0 for length, size in zip(block, shape, strict=True)
        ):
            raise ValueError(
                f"a block of {by(self.shape)} is larger than the {by(shape)} weights"
            )
        return block

    def __str__(self) -> str:
        return f"{by(self.shape)} blocks, {self.pool}"


@dataclasses.dataclass(frozen=True)
class Channel:
    """Whole channels: a block that spans every other axis.

    Attributes:
      axis: the axis of channels: -1, a kernel's output channels, or -2, its input
        channels; in Equinox and PyTorch 0 and 1. Of a stacked leaf, an axis of its
        slices.
      pool: how a channel is scored, as for `Block`.

    Raises:
      ValueError: if a field is not one of these.

    Examples:
      >>> Channel().block_shape((3, 3, 64, 128))
      (3, 3, 64, 1)
      >>> Channel(axis=0).block_shape((128, 64, 3, 3))  # Equinox, PyTorch
      (1, 64, 3, 3)

    References:
      Li et al., [Pruning filters for efficient
      convnets](https://arxiv.org/abs/1608.08710), 2017.
    """

    axis: int = -1
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _integer("axis", self.axis))
        _check_pool(self.pool)

    def block_shape(self, shape: Shape) -> Shape:
        """The whole leaf but for one channel."""
        axis = _axis_of(shape, self.axis)
        return tuple(
            1 if other == axis else max(size, 1) for other, size in enumerate(shape)
        )

    def __str__(self) -> str:
        return f"channels of axis {self.axis}, {self.pool}"


Structure = Unstructured | NM | Block | Channel
"""Any of the structures: what `structure` of a rule may be, besides None."""


def slice_shape(shape: Shape, stack_axis: int | None) -> Shape:
    """The shape of one slice of a stacked leaf; of others, their own."""
    if stack_axis is None:
        return shape
    stack_axis %= len(shape)
    return shape[:stack_axis] + shape[stack_axis + 1 :]


def leaf_block(structure: Structure, shape: Shape, stack_axis: int | None) -> Shape:
    """The block along every axis of a leaf, 1 along the axis of its slices.

    Raises:
      ValueError: if the structure does not fit the shape.
    """
    block = structure.block_shape(slice_shape(shape, stack_axis))
    if stack_axis is None:
        return block
    stack_axis %= len(shape)
    return (*block[:stack_axis], 1, *block[stack_axis:])


def output_axis(axis: int | None, ndim: int) -> int:
    """The axis of output channels counted from the front; None is the last."""
    return (-1 if axis is None else axis) % ndim


def unit_shape(shape: Shape, block: Shape) -> Shape:
    """How many blocks there are along every axis, the ragged ones too."""
    return tuple(
        math.ceil(size / length) for size, length in zip(shape, block, strict=True)
    )


def _axis_of(shape: Shape, axis: int) -> int:
    """The axis counted from the front."""
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"there is no axis {axis} in a shape of {len(shape)} axes")
    return axis % len(shape)


def _along(axis: int, length: int, shape: Shape) -> Shape:
    """A length along one axis, 1 along all others."""
    return tuple(length if other == axis else 1 for other in range(len(shape)))


def _nearest_group(length: int, of: int) -> str:
    """What to write in place of `of`, for a length that it does not divide."""
    fitting = [n for n in range(2, min(length, LARGEST_GROUP) + 1) if length % n == 0]
    if not fitting:
        return "no group does, leave this leaf out of the rule"
    nearest = min(fitting, key=lambda n: (abs(n - of), n))
    return f"the nearest that does is of={nearest}"


def by(lengths: Shape) -> str:
    """A shape as it is printed.

    Examples:
      >>> by((3, 4)), by(())
      ('3x4', 'scalar')
    """
    return "x".join(map(str, lengths)) or "scalar"


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be an integer.") from None


def _check_pool(pool: Any) -> None:
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {get_args(Pool)}.")
