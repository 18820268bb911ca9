"""Weights by themselves, rectangular blocks, and whole channels of one leaf."""

from __future__ import annotations

import dataclasses
import operator

from gradprune_jax._structures.checks import Pool, Shape, check_index, check_pool
from gradprune_jax._tables import by


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
        check_pool(self.pool)

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
        object.__setattr__(self, "axis", check_index("axis", self.axis))
        check_pool(self.pool)

    def __str__(self) -> str:
        return f"channels of axis {self.axis}, {self.pool}"
