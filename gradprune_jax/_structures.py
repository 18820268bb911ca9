"""Structures: which weights are kept or dropped together.

A structure cuts a leaf into blocks of one shape. Blocks and channels are units: they
are kept or dropped whole. The smallest unit is a single weight. Under N:M a block is a
group of M weights, of which the N largest are kept.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, Literal, get_args

from gradprune_jax._checks import is_traced
from gradprune_jax._tables import by

Shape = tuple[int, ...]
Pool = Literal["mean", "max"]

# The weights of an N:M group are counted in the float32 arithmetic of sparsities.
LARGEST_NM_GROUP = 256
# Sparsities are written as decimals, such as 0.333333 for 2:3.
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is kept or dropped by itself: the paper's choice.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> kernel = jnp.array([[4.0, 3.0], [2.0, 1.0]])
      >>> params, _ = gp.prune({"kernel": kernel}, 0.5, structure=Unstructured())
      >>> print(params["kernel"])
      [[4. 3.]
       [0. 0.]]
    """

    def __str__(self) -> str:
        return "Unstructured"


@dataclasses.dataclass(frozen=True)
class NM:
    r"""N:M sparsity: of every M neighbours the N largest are kept.

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

    | kernel | shape | `axis` |
    |-|-|-|
    | `Dense`, `nnx.Linear` | (in, out) | -2 |
    | `Conv` | (height, width, in, out) | -2 |
    | attention's query, key and value | (in, heads, dim) | -3 |
    | attention's out | (heads, dim, out) | -2 |
    | `DenseGeneral` from axes A to axes B | (*A, *B) | last of A |
    | `Embed` | (entries, features) | -1 |
    | Equinox's and PyTorch's `Linear` | (out, in) | 1 |
    | Equinox's and PyTorch's `Conv2d` | (out, in, height, width) | 1 |
    | Equinox's `GRUCell`, `LSTMCell` | (gates, in) | 1 |

    Attributes:
      keep: N, the weights that each group keeps, in [1, `of` - 1].
      of: M, the weights of a group, in [2, 256].
      axis: the axis along which neighbours form groups. Of a stacked leaf, an axis of
        its slices.

    Raises:
      ValueError: if a field is outside its range.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> kernel = jnp.array([[4.0, 3.0], [2.0, 1.0]])
      >>> params, _ = gp.prune({"kernel": kernel}, 0.5, structure=NM(keep=1, of=2))
      >>> print(params["kernel"])  # one of each two inputs
      [[4. 3.]
       [0. 0.]]
      >>> print(NM(keep=2, of=4, axis=1))  # for kernels of Equinox and PyTorch
      2:4 on axis 1

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
        if not 2 <= self.of <= LARGEST_NM_GROUP:
            raise ValueError(
                f"of is {self.of}, the weights of a group of NM; it must be in "
                f"[2, {LARGEST_NM_GROUP}]."
            )
        if not 1 <= self.keep < self.of:
            raise ValueError(
                f"keep is {self.keep}, the weights kept of {self.of}; it must be in "
                f"[1, {self.of - 1}]."
            )

    def __str__(self) -> str:
        return f"{self.keep}:{self.of} on axis {self.axis}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Rectangular blocks on the last axes, kept or dropped whole.

    A block's score is the mean or the largest magnitude of its weights. Where the block
    does not divide the leaf, the last blocks are smaller, and are scored by the weights
    that they have. At sparsity s, n - round(s n) of n blocks are kept, at least one. Of
    blocks with equal scores the first in C order is kept.

    Attributes:
      shape: the lengths of a block along the last axes, such as `(4, 4)`; 1 along all
        others. On a convolution's HWIO kernel these two are input and output channels.
      pool: `"mean"` or `"max"`. The mean is summed in integers, so that it does not
        depend on the order of summation, and is rounded down to float32.

    Raises:
      ValueError: if a field is not one of these.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> kernel = jnp.array([[4.0, 3.0], [2.0, 1.0]])
      >>> params, _ = gp.prune({"kernel": kernel}, 0.5, structure=Block((2, 1)))
      >>> print(params["kernel"])
      [[4. 0.]
       [2. 0.]]

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
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> kernel = jnp.array([[4.0, 3.0], [2.0, 1.0]])
      >>> params, _ = gp.prune({"kernel": kernel}, 0.5, structure=Channel())
      >>> print(params["kernel"])  # one of two output channels
      [[4. 0.]
       [2. 0.]]
      >>> print(Channel(axis=0))  # for kernels of Equinox and PyTorch
      channels of axis 0, mean

    References:
      Li et al., [Pruning filters for efficient
      convnets](https://arxiv.org/abs/1608.08710), 2017.
    """

    axis: int = -1
    pool: Pool = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _integer("axis", self.axis))
        _check_pool(self.pool)

    def __str__(self) -> str:
        return f"channels of axis {self.axis}, {self.pool}"


Structure = Unstructured | NM | Block | Channel
"""Any of the structures: what `structure` of a rule may be, besides None."""


def counted(structure: Structure | None) -> Structure:
    """The structure whose blocks are counted as units: single weights under N:M."""
    if structure is None or isinstance(structure, NM):
        return Unstructured()
    return structure


def check_pattern(name: str, sparsity: Any, structure: Structure | None) -> None:
    """Refuses a sparsity that contradicts that of an N:M pattern.

    Args:
      name: what the sparsity is, for the error.
      sparsity: a number, or a tracer, which passes.
      structure: a structure; none but `NM` has a sparsity of its own.

    Raises:
      ValueError: if the two differ by more than 1e-6.
    """
    if not isinstance(structure, NM) or is_traced(sparsity):
        return
    own = 1 - structure.keep / structure.of
    if abs(sparsity - own) > TOLERANCE:
        raise ValueError(
            f"{name} is {sparsity:.6g} with {structure!r}, whose sparsity is "
            f"1 - {structure.keep}/{structure.of} = {own:.6g}; give {own:.6g}, or a "
            f"pattern of sparsity {sparsity:.6g}."
        )


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; it must be an integer.") from None


def _check_pool(pool: Any) -> None:
    if pool not in get_args(Pool):
        raise ValueError(f"pool is {pool!r}; it must be one of {get_args(Pool)}.")
