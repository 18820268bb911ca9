"""The state of the links: a count of updates, and masks like the parameters."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import laid_out_like


class GradualPruneState(NamedTuple):
    """State of `gradual_prune`.

    Attributes:
      count: int32 scalar, the number of updates done.
      masks: a tree like the parameters': bool arrays, True where a weight is kept, and
        `optax.MaskedNode()` where a leaf stays dense.
    """

    count: chex.Array
    masks: Any


class WithGradualPruneState(NamedTuple):
    """State of `with_gradual_prune`.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      prune_state: the masks and their count.
    """

    inner_state: Any
    prune_state: GradualPruneState


class ScoredPruneState(NamedTuple):
    """State of `with_gradual_prune` where a score accumulates numbers.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      prune_state: the masks and their count.
      scores: a tree like the parameters': what the score of a leaf's rule has
        accumulated, floating and of the leaf's shape, and `optax.MaskedNode()` where it
        accumulates nothing.
    """

    inner_state: Any
    prune_state: GradualPruneState
    scores: Any


class SparseTrainingState(NamedTuple):
    """State of `with_sparse_training`.

    Attributes:
      inner_state: the state of the wrapped optimizer.
      prune_state: the masks and the count of steps.
      moved: float32 scalar, the fraction of the live weights that were grown by the
        last update.
    """

    inner_state: Any
    prune_state: GradualPruneState
    moved: chex.Array


def is_dense(mask: Any) -> bool:
    """Whether a mask is `MaskedNode`, the mark of a leaf that is not pruned."""
    return isinstance(mask, optax.MaskedNode)


def check_fits(name: str, leaf: Any, mask: Any) -> None:
    """Refuses a mask of another shape than its leaf, or one that is not bool.

    A restore that targets the wrong dtype casts masks to floats without a word.
    """
    if mask.dtype != bool or mask.shape != leaf.shape:
        raise ValueError(
            f"the mask of {name!r} is {mask.dtype}{list(mask.shape)}; it must be "
            f"bool{list(leaf.shape)}. Was it restored from a checkpoint into another "
            "dtype or shape?"
        )


def mask_like(leaf: jax.Array, mask: Any = True) -> jax.Array:
    """Makes a mask laid out over devices as its leaf is; by default all True."""
    given = () if mask is True else (mask,)
    return _with_layout_of(leaf, _mask_like(leaf, *given))


def zeros_laid_out_like(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Makes zeros that are laid out over devices as a leaf is, as `mask_like` does."""
    return _with_layout_of(leaf, _zeros_laid_out_like(leaf, dtype))


def _with_layout_of(leaf: Any, made: jax.Array) -> jax.Array:
    """What a program has made, its type that of its leaf too.

    XLA leaves out mesh axes of one device, and so they would be missing in the types of
    what it returns, where a mesh has axes of several types.
    """
    if is_traced(made) or not isinstance(leaf, jax.Array) or not leaf.committed:
        return made
    return jax.device_put(made, leaf.sharding)


@jax.jit
def _mask_like(leaf: jax.Array, mask: Any = True) -> jax.Array:
    """A mask from a compiled program.

    Under jit in automatic sharding mode XLA may lay out a constant as it likes. So the
    mask is selected between a function of the parameter and the constant. The condition
    is always False, but XLA does not know it, and lays out both alike.
    """
    never = jax.lax.optimization_barrier(jnp.zeros([], bool))
    kept = jnp.ones_like(leaf, dtype=bool)
    if mask is not True:
        kept = laid_out_like(mask, kept)
    return jnp.where(never, jnp.isnan(leaf), kept)


@functools.partial(jax.jit, static_argnums=1)
def _zeros_laid_out_like(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Zeros from a compiled program, as `_mask_like` makes a mask."""
    never = jax.lax.optimization_barrier(jnp.zeros([], bool))
    zeros = jnp.zeros_like(leaf, dtype=dtype)
    return jnp.where(never, leaf.astype(dtype), zeros)


def check_state(state: Any, kind: type) -> None:
    """Refuses a state that is not one of this library."""
    if not isinstance(state, kind):
        raise ValueError(
            f"the state is a {type(state).__name__}; it must be the {kind.__name__} "
            "that init made. Was it restored without its structure?"
        )
