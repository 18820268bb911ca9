"""Wanda: weights go whose magnitude times the norm of their input is smallest."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._calibration.method import CalibratedMethod, Target
from gradprune_jax._calibration.selection import largest, largest_of_groups
from gradprune_jax._mask_update import kept_count


@dataclasses.dataclass(frozen=True)
class Wanda(CalibratedMethod):
    r"""Prunes by magnitudes and activations, within each output.

    $$
    s_{o, i} = |w_{o, i}| \, \lVert x_i \rVert_2
    $$

    with the norm over all calibration samples. Every output keeps those of its weights
    with the largest s, the same number for all. Weights that stay are not changed.

    Examples:
      >>> import gradprune_jax as gp
      >>> kernel = jnp.array([[1.0], [2.0]])  # the first input is ten times larger
      >>> inputs = jnp.array([[10.0, 1.0], [10.0, -1.0]])
      >>> params, _ = gp.prune_calibrated(
      ...     lambda params, x: x @ params["kernel"], {"kernel": kernel}, [inputs], 0.5
      ... )
      >>> print(params["kernel"])
      [[1.]
       [0.]]

    References:
      Sun et al., [A simple and effective pruning approach for large language
      models](https://arxiv.org/abs/2306.11695), 2023, equation 1.
    """

    def statistic(self, inputs: jax.Array) -> jax.Array:
        """The sum of squares of every input: [groups, inputs]."""
        return jnp.sum(jnp.square(inputs), axis=1)

    def prune(
        self, weights: jax.Array, statistic: jax.Array, target: Target
    ) -> tuple[jax.Array, jax.Array]:
        """Keeps the highest scores of every output."""
        pattern = target.pattern
        if pattern is None:
            inputs = weights.shape[-1]
            (kept,) = kept_count([inputs], np.float32(target.sparsity)).integers()
            mask = _mask(weights, statistic, kept)
        else:
            mask = _mask_in_groups(weights, statistic, pattern.of, pattern.keep)
        return jnp.where(mask, weights, 0), mask


@jax.jit
def _mask(weights: jax.Array, squares: jax.Array, kept: int) -> jax.Array:
    """Marks the weights of each output that stay."""
    return largest(_scores(weights, squares), jnp.uint32(kept), slice_axes=(0, 1))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mask_in_groups(
    weights: jax.Array, squares: jax.Array, of: int, keep: int
) -> jax.Array:
    """Marks the weights of each group of neighbours that stay."""
    return largest_of_groups(_scores(weights, squares), 2, of, keep)


def _scores(weights: jax.Array, squares: jax.Array) -> jax.Array:
    norms = jnp.sqrt(squares).astype(weights.dtype)
    return jnp.abs(weights) * norms[:, None, :]
