"""What a score is: what it reads of a leaf, and what it returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class ScoredLeaf(NamedTuple):
    """One leaf as a score sees it.

    Attributes:
      name: its path.
      weight: the leaf, or its local piece inside `shard_map`.
      gradient: of the same shape; None where there is none.
      state: what the score has accumulated for every weight, of this shape; None for a
        score that accumulates nothing.
      flat_index: gives the flat index of every weight in the whole leaf, uint32 of this
        shape.
    """

    name: str
    weight: Array
    gradient: Any
    state: Any
    flat_index: Callable[[], Array]


class Score:
    """What all scores have in common.

    Attributes:
      needs_gradients: whether it reads gradients.
      accumulates: whether it carries a number for every weight from step to step.
      is_signed: whether its numbers may be negative.
    """

    needs_gradients: ClassVar[bool] = True
    accumulates: ClassVar[bool] = False
    is_signed: ClassVar[bool] = False

    def accumulate(self, state: Array, weight: Array, gradient: Array) -> Array:
        """The state after a step, from the weights and gradients of the step."""
        raise NotImplementedError

    def scores(self, leaf: ScoredLeaf) -> Array:
        """A floating array of the leaf's shape."""
        raise NotImplementedError


def score_dtype(*dtypes: Any) -> Any:
    """The dtype in which scores of such arrays are computed: float32 or wider."""
    wide = [dtype for dtype in dtypes if jnp.finfo(dtype).bits > 8]  # others fit in
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide, jnp.dtype(jnp.float32))
