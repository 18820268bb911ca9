"""Inspection: how sparse parameters and masks are, and whether promises hold."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _paths
from gradprune_jax._checks import is_traced
from gradprune_jax._magnitudes import is_nonzero
from gradprune_jax._masks import get_masks, pair_with_masks, prune_states
from gradprune_jax._state import is_dense


def sparsity(tree: Any) -> dict[str, jax.Array]:
    r"""The fraction of zeros of parameters, or of pruned weights of masks.

    .. math:: |\{i : w_i = 0\}| / n \quad \mathrm{or} \quad |\{i : \neg m_i\}| / n

    Args:
      tree: parameters (floating leaves) or masks (bool leaves), plain or boxed; other
        leaves, and the dense leaves of masks, do not count. Traced or not.

    Returns:
      float32 scalars by path, and ``"total"`` over all weights together.

    Example:
      >>> fractions = sparsity({"kernel": jnp.array([0.0, 2.0]), "bias": jnp.ones(2)})
      >>> {path: float(fraction) for path, fraction in fractions.items()}
      {'bias': 0.0, 'kernel': 0.5, 'total': 0.25}
    """
    zeros: dict[str, jax.Array] = {}
    sizes: dict[str, int] = {}
    for leaf in _paths.named_leaves(tree):
        if is_countable(leaf.value):
            # The name of all weights together is not to be hidden by a parameter's.
            name = leaf.name if leaf.name != "total" else "['total']"
            zeros[name] = _count_zeros(leaf.value)
            sizes[name] = np.size(leaf.value)
    fractions = {name: _fraction([zeros[name]], sizes[name]) for name in zeros}
    return fractions | {"total": _fraction(zeros.values(), sum(sizes.values()))}


def dead_channels(tree: Any, axis: int = -1) -> dict[str, np.ndarray]:
    r"""The channels of which nothing is left: zero in parameters, False in masks.

    .. math:: \{c : w_{\dots, c, \dots} = 0\}

    Args:
      tree: parameters or masks, plain or boxed; not traced.
      axis: the axis of channels: -1, a kernel's output channels, or -2, its input
        channels. Leaves without this axis do not count.

    Returns:
      By path the indices of dead channels, int64, in ascending order; of every
      floating or bool leaf of two or more axes that has any.

    Example:
      >>> dead_channels({"kernel": jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])})
      {'kernel': array([1])}
    """
    dead = {}
    for leaf in _paths.named_leaves(tree):
        ndim = np.ndim(leaf.value) if is_countable(leaf.value) else 0
        if ndim < 2 or not -ndim <= axis < ndim:
            continue
        if is_traced(leaf.value):
            raise ValueError(
                "dead_channels reads values and cannot run under jit; call it between "
                "steps."
            )
        indices = np.flatnonzero(~np.asarray(_live_channels(leaf.value, axis % ndim)))
        if indices.size:
            dead[leaf.name] = indices
    return dead


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """What to log of pruning: a flat dictionary of scalars, computable under jit.

    Args:
      opt_state: the state of an optimizer with pruning in it, as for
        :func:`get_masks`.

    Returns:
      ``"count"``, the updates done (int32), ``"sparsity/total"`` and
      ``"sparsity/<path>"`` of every pruned leaf (float32).

    Raises:
      ValueError: if there is no pruning state.

    Example:
      >>> import gradprune_jax as gp
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, step=0))
      >>> scalars = metrics(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> {name: float(value) for name, value in scalars.items()}
      {'count': 0.0, 'sparsity/kernel': 0.0, 'sparsity/total': 0.0}
    """
    counts = [jnp.asarray(state.count) for state in prune_states(opt_state)]
    fractions = sparsity(get_masks(opt_state))
    return {"count": jnp.max(jnp.stack(counts))} | {
        f"sparsity/{name}": fraction for name, fraction in fractions.items()
    }


def check_pruned(params: Any, opt_state: Any) -> None:
    """Checks the promise: every pruned weight is zero, and every weight is finite.

    Args:
      params: the parameters, plain or boxed, as they are after
        ``optax.apply_updates``; of an nnx model ``nnx.state(model, nnx.Param)``. Not
        under jit.
      opt_state: the optimizer's state, as for :func:`get_masks`.

    Raises:
      ValueError: naming each path and its count, if a pruned weight is not zero or a
        weight is not finite; or if the masks do not fit the parameters.

    Example:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, step=0))
      >>> check_pruned(params, tx.init(params))
    """
    failures = []
    for name, leaf, mask in pair_with_masks(params, get_masks(opt_state)):
        if is_traced(leaf):
            raise ValueError(
                "check_pruned reads the parameters' values and cannot run under jit; "
                "call it between steps."
            )
        if not is_countable(leaf):
            continue
        not_finite, revived = map(int, _count_failures(leaf, mask))
        if not_finite:
            failures.append(f"{name!r}: {not_finite} weights are not finite")
        if revived:
            failures.append(f"{name!r}: {revived} pruned weights are not zero")
    if failures:
        raise ValueError(
            "; ".join(failures) + ". gradual_prune must be the last link of the chain, "
            "and nothing may change the parameters after optax.apply_updates. A weight "
            "that is not finite cannot be zeroed by an update."
        )


def is_countable(leaf: Any) -> bool:
    """Whether a leaf is parameters or a mask; not an integer, a key, or a function."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.bool_)
    )


# Compiled, for op by op each of these would make arrays as large as the leaf.


@jax.jit
def _count_zeros(values: jax.Array) -> jax.Array:
    """How many values are zero or False, uint32."""
    return jnp.sum(~is_nonzero(values), dtype=jnp.uint32)


@functools.partial(jax.jit, static_argnums=1)
def _live_channels(values: jax.Array, axis: int) -> jax.Array:
    """Which channels have a value that is not zero, bool (channels,)."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    return jnp.any(is_nonzero(values), axis=others)


@jax.jit
def _count_failures(leaf: jax.Array, mask: Any) -> tuple[jax.Array, jax.Array]:
    """How many weights are not finite, and how many pruned ones are not zero."""
    not_finite = jnp.sum(~jnp.isfinite(leaf), dtype=jnp.uint32)
    if is_dense(mask):
        return not_finite, jnp.uint32(0)
    return not_finite, jnp.sum(~mask & is_nonzero(leaf), dtype=jnp.uint32)


def _fraction(counts: Iterable[jax.Array], size: int) -> jax.Array:
    """The sum of the counts over a size, float32; 0 of nothing."""
    total = sum((count.astype(jnp.float32) for count in counts), jnp.float32(0))
    return total / np.float32(max(size, 1))
