"""The scores of this library."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from gradprune_jax._checks import check_fraction, check_integer, check_known
from gradprune_jax._scores.base import Array, Score, ScoredLeaf, score_dtype
from gradprune_jax._scores.random_numbers import uniform


@dataclasses.dataclass(frozen=True)
class Magnitude(Score):
    r"""Ranks weights by their magnitude $|w|$, as the paper does. The default.

    Examples:
      >>> import gradprune_jax as gp
      >>> kernel = jnp.array([[3.0, -1.0], [0.5, 2.0]])
      >>> params, masks = gp.prune({"kernel": kernel}, 0.5, score=gp.Magnitude())
      >>> print(params["kernel"])
      [[3. 0.]
       [0. 2.]]
    """

    needs_gradients: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Random(Score):
    """Ranks weights by random numbers, drawn once for every weight.

    What a method is worth shows beside it. The numbers are uniform in [0, 1), of 24
    bits, and depend on the seed, on the path of the leaf and on the place of a weight
    in it, and on no layout.

    Attributes:
      seed: an integer from 0 to 2^31 - 1.

    Raises:
      ValueError: if the seed is not one.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> _, masks = gp.prune(params, 0.75, score=gp.Random(seed=1))
      >>> print(masks["kernel"].sum())
      4
    """

    seed: int = 0
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        seed = check_known("seed", check_integer("seed", self.seed, minimum=0))
        object.__setattr__(self, "seed", seed)

    def scores(self, leaf: ScoredLeaf) -> Array:
        """Uniform numbers in [0, 1), float32."""
        return uniform(self.seed, leaf.name, leaf.flat_index(), jnp.uint32(0))


@dataclasses.dataclass(frozen=True)
class Saliency(Score):
    r"""Ranks weights by $|w \, g|$, the loss's change to first order without them.

    With one-shot pruning of fresh parameters this is SNIP.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}
      >>> gradients = {"kernel": jnp.array([[0.0, 1.0], [8.0, 0.1]])}
      >>> pruned, masks = gp.prune(
      ...     params, 0.5, score=gp.Saliency(), gradients=gradients
      ... )
      >>> print(pruned["kernel"])
      [[ 0.  -1. ]
       [ 0.5  0. ]]

    References:
      Molchanov et al., [Pruning convolutional neural
      networks](https://arxiv.org/abs/1611.06440), 2017, equation 7; Lee et al.,
      [SNIP](https://arxiv.org/abs/1810.02340), 2019, equation 6.
    """

    def scores(self, leaf: ScoredLeaf) -> Array:
        """The magnitude of the product."""
        return jnp.abs(_product(leaf.weight, leaf.gradient))


@dataclasses.dataclass(frozen=True)
class Fisher(Score):
    r"""Ranks weights by $w^2 \bar{g^2}$: what the loss grows by without them.

    The curvature is the diagonal of the empirical Fisher information, a running mean of
    the squared gradient,

    $$
    \bar{g^2} \leftarrow d \, \bar{g^2} + (1 - d) \, g^2,
    $$

    of the batch's mean gradient, as the optimizer sees it.

    Attributes:
      decay: d, in [0, 1).

    Raises:
      ValueError: if the decay is not in this range.

    Examples:
      >>> Fisher(decay=0.9)
      Fisher(decay=0.9)

    References:
      Theis et al., [Faster gaze prediction with dense networks and Fisher
      pruning](https://arxiv.org/abs/1801.05787), 2018, equation 8.
    """

    decay: float = 0.99
    accumulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        decay = check_known("decay", check_fraction("decay", self.decay))
        if not decay < 1:
            raise ValueError(f"decay is {self.decay!r}; it must be below 1.")
        object.__setattr__(self, "decay", decay)

    def accumulate(self, state: Array, weight: Array, gradient: Array) -> Array:
        """The running mean of the squared gradient."""
        del weight
        square = _product(gradient, gradient).astype(state.dtype)
        return _rounded(self.decay * state) + _rounded((1 - self.decay) * square)

    def scores(self, leaf: ScoredLeaf) -> Array:
        """The product of both squares."""
        return _product(leaf.weight, leaf.weight) * leaf.state


@dataclasses.dataclass(frozen=True)
class Movement(Score):
    r"""Ranks weights by how far they moved away from zero: $-\sum_t w_t g_t$, signed.

    A weight whose gradient pulls it towards zero scores low, however large it is. For
    the fine-tuning of pretrained networks.

    Examples:
      >>> Movement()
      Movement()

    References:
      Sanh et al., [Movement pruning](https://arxiv.org/abs/2005.07683), 2020, equation
      3, with the learning rate left out, which ranks nothing.
    """

    accumulates: ClassVar[bool] = True
    is_signed: ClassVar[bool] = True

    def accumulate(self, state: Array, weight: Array, gradient: Array) -> Array:
        """The running sum."""
        return state - _rounded(_product(weight, gradient).astype(state.dtype))

    def scores(self, leaf: ScoredLeaf) -> Array:
        """The sum of all steps."""
        return leaf.state


def _product(one: Array, other: Array) -> Array:
    """The product in float32, or in a wider dtype of the two."""
    dtype = score_dtype(one.dtype, other.dtype)
    return one.astype(dtype) * other.astype(dtype)


def _rounded(product: Array) -> Array:
    """A product, rounded before it is added to something.

    Else a compiler may round product and sum at once, in one program and not in
    another, and the last bit would depend on the layout. It does not see through this
    selection, which NaN alone could change.
    """
    return jnp.where(product == product, product, jnp.nan)
