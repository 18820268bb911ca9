"""What users give as a score: one of this library's, or a function of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from gradprune_jax._scores.base import Array, Score, ScoredLeaf
from gradprune_jax._scores.scores import Magnitude


@dataclasses.dataclass(frozen=True)
class OwnScore(Score):
    """Ranks weights by what a user's function makes of them.

    Attributes:
      fn: from the parameter and its gradient to an array of their shape.
    """

    fn: Callable[[Array, Array], Array]
    is_signed: ClassVar[bool] = True

    def scores(self, leaf: ScoredLeaf) -> Array:
        """What the function returns, refused if it fits no ranking."""
        found = self.fn(leaf.weight, leaf.gradient)
        is_array = hasattr(found, "dtype") and hasattr(found, "shape")
        if (
            not is_array
            or found.shape != leaf.weight.shape
            or not jnp.issubdtype(found.dtype, jnp.floating)
        ):
            what = f"{found.dtype}{list(found.shape)}" if is_array else repr(found)
            raise ValueError(
                f"the score of {leaf.name!r} is {what}; the function must return a "
                f"floating array of the parameter's shape, {list(leaf.weight.shape)}."
            )
        found = jnp.asarray(found)
        return found if jnp.finfo(found.dtype).bits > 8 else found.astype(jnp.bfloat16)


AnyScore = Score | Callable[[Array, Array], Array]


def as_score(score: Any) -> Score | None:
    """The score that a user wrote; None for the magnitude.

    Args:
      score: a score, a callable, or None.

    Returns:
      A score; None for `Magnitude()`, so that both are one compiled program.

    Raises:
      ValueError: if it is neither.
    """
    if score is None or isinstance(score, Magnitude):
        return None
    if isinstance(score, Score):
        return score
    if isinstance(score, type) or not callable(score):
        raise ValueError(
            f"score is {score!r}; it must be Magnitude(), Random(seed), Saliency(), "
            "Fisher(decay), Movement(), or a callable (param, gradient) -> array."
        )
    return OwnScore(score)
