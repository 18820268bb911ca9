"""N:M: of every group of M neighbours the N largest are kept."""

from __future__ import annotations

import dataclasses
from typing import Any

from gradprune_jax._checks import is_traced
from gradprune_jax._structures.checks import check_index

# The weights of an N:M group are counted in the float32 arithmetic of sparsities.
LARGEST_NM_GROUP = 256
# Sparsities are written as decimals, such as 0.333333 for 2:3.
TOLERANCE = 1e-6


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
            object.__setattr__(self, name, check_index(name, getattr(self, name)))
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


def check_pattern(name: str, sparsity: Any, structure: Any) -> None:
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
