"""Inspection: how sparse parameters and masks are, and whether promises hold."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._masks import get_masks, prune_states
from gradprune_jax._pairing import is_wide, pair_with_masks
from gradprune_jax._state import SparseTrainingState, is_dense
from gradprune_jax._top_k import Count, count_true, is_nonzero


def sparsity(tree: Any) -> dict[str, jax.Array]:
    r"""The fraction of zeros of parameters, or of pruned weights of masks.

    $$
    |\{i : w_i = 0\}| / n \quad \mathrm{or} \quad |\{i : \neg m_i\}| / n
    $$

    Args:
      tree: parameters (floating leaves) or masks (bool leaves), plain or boxed, or a
        whole Equinox or nnx model; other leaves, and the dense leaves of masks, do not
        count. Traced or not. Leaves may lie on different devices.

    Returns:
      float32 scalars by path, and `"total"` over all weights together.

    Raises:
      ValueError: if a leaf is a shape, without values.

    Examples:
      >>> fractions = sparsity({"kernel": jnp.array([0.0, 2.0]), "bias": jnp.ones(2)})
      >>> {path: float(fraction) for path, fraction in fractions.items()}
      {'bias': 0.0, 'kernel': 0.5, 'total': 0.25}
    """
    zeros: dict[str, Count] = {}
    sizes: dict[str, int] = {}
    for leaf in _tree.named_leaves(_tree.parameters(tree)):
        if is_countable(leaf.value):
            _check_has_values(leaf)
            # A parameter may be called "total"; it must not replace the total.
            name = leaf.name if leaf.name != "total" else "['total']"
            values = leaf.value != 0 if is_wide(leaf.value) else leaf.value
            zeros[name] = _count_zeros(values)
            sizes[name] = np.size(leaf.value)
    total = functools.reduce(_add, _together(list(zeros.values())), Count.of(0))
    fractions = {name: _fraction(zeros[name], sizes[name]) for name in zeros}
    return fractions | {"total": _fraction(total, sum(sizes.values()))}


def dead_channels(tree: Any, axis: int = -1) -> dict[str, np.ndarray]:
    r"""Finds dead channels: all zero in parameters, all False in masks.

    $$
    \{c : w_{\dots, c, \dots} = 0\}
    $$

    Args:
      tree: parameters or masks, plain or boxed; not traced.
      axis: the axis of channels: -1, a kernel's output channels, or -2, its input
        channels; 0 and 1 in Equinox and PyTorch. Leaves without this axis do not count.

    Returns:
      A dictionary from path to the indices of the dead channels, int64, ascending. Only
      floating and bool leaves of two or more axes are in it, and only if they have any.

    Examples:
      >>> dead_channels({"kernel": jnp.array([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])})
      {'kernel': array([1])}
    """
    dead = {}
    for leaf in _tree.named_leaves(tree):
        ndim = np.ndim(leaf.value) if is_countable(leaf.value) else 0
        if ndim < 2 or not -ndim <= axis < ndim:
            continue
        if is_traced(leaf.value):
            raise ValueError(
                "dead_channels reads values and cannot run under jit; call it between "
                "steps."
            )
        _check_has_values(leaf)
        indices = np.flatnonzero(~_live_channels(leaf.value, axis % ndim))
        if indices.size:
            dead[leaf.name] = indices
    return dead


def _check_has_values(leaf: _tree.Leaf) -> None:
    """Refuses shapes, of which nothing can be counted."""
    if isinstance(leaf.value, jax.ShapeDtypeStruct):
        raise ValueError(f"{leaf.name!r} has a shape but no values; give arrays.")


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """A flat dictionary of scalars to log, computable under jit.

    Args:
      opt_state: the state of an optimizer with pruning in it, as for
        `get_masks`.

    Returns:
      `"count"`, the updates done (int32), `"sparsity/total"` and
      `"sparsity/<path>"` of every pruned leaf (float32); under sparse training also
      `"moved"`, the fraction of the live weights that the last update grew (float32).

    Raises:
      ValueError: if there is no pruning state.

    Examples:
      >>> import gradprune_jax as gp
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, step=0))
      >>> scalars = metrics(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> {name: float(value) for name, value in scalars.items()}
      {'count': 0.0, 'sparsity/kernel': 0.0, 'sparsity/total': 0.0}
    """
    counts = _together([jnp.asarray(s.count) for s in prune_states(opt_state)])
    fractions = sparsity(get_masks(opt_state))
    scalars = {"count": jnp.max(jnp.stack(counts))} | {
        f"sparsity/{name}": fraction for name, fraction in fractions.items()
    }
    moved = [jnp.asarray(state.moved) for state in _sparse_training_states(opt_state)]
    if moved:
        scalars["moved"] = jnp.max(jnp.stack(_together(moved)))
    return scalars


def _sparse_training_states(opt_state: Any) -> list[SparseTrainingState]:
    """Every state of sparse training inside an optimizer's state."""

    def is_state(node: Any) -> bool:
        return isinstance(node, SparseTrainingState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_state)
    return [node for node in nodes if is_state(node)]


def check_pruned(params: Any, opt_state: Any) -> None:
    """Checks that every pruned weight is +0.0, and that every weight is finite.

    Args:
      params: the parameters, plain or boxed, as they are after
        `optax.apply_updates`; or a whole Equinox or nnx model. Of an nnx model its
        `nnx.Param` are checked; for other variables give `nnx.state(model, ...)`. Not
        under jit.
      opt_state: the optimizer's state, as for `get_masks`.

    Raises:
      ValueError: naming each path and its count, if a pruned weight is not +0.0 or a
        weight is not finite, with what may have caused it; or if the masks do not fit
        the parameters.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> tx = gp.gradual_prune(gp.one_shot_schedule(0.5, step=0))
      >>> check_pruned(params, tx.init(params))
    """
    failures = []
    advice: dict[str, str] = {}
    for name, leaf, mask in pair_with_masks(params, get_masks(opt_state)):
        if is_traced(leaf):
            raise ValueError(
                "check_pruned reads the parameters' values and cannot run under jit; "
                "call it between steps."
            )
        if not is_countable(leaf):
            continue
        found = _failures(leaf, None if is_dense(mask) else mask)
        for failure, count in found._asdict().items():
            if number := int(count.integers()):
                failures.append(f"{name!r}: {number} {_FAILURES[failure][0]}")
                advice[failure] = _FAILURES[failure][1]
    if failures:
        raise ValueError(f"{'; '.join(failures)}. {' '.join(advice.values())}")


def is_countable(leaf: Any) -> bool:
    """Whether a leaf is parameters or a mask; not an integer, a key, or a function."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and (
        jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.bool_)
    )


class _Failures(NamedTuple):
    """How many weights break the promise, by what is wrong with them."""

    not_finite: Count
    revived: Count
    negative: Count


# What is wrong, and what to do about it.
_FAILURES = {
    "not_finite": (
        "weights are not finite",
        "NaN or infinity means that the training diverged, or began with such weights: "
        "look at the loss, the learning rate and the data; where a layer divides by "
        "the norm of each channel, a rule needs min_per_channel. No update can turn "
        "them into zero.",
    ),
    "revived": (
        "pruned weights are not zero",
        "A pruned weight comes back where something changes the updates after "
        "gradual_prune, or the parameters after optax.apply_updates. gradual_prune "
        "must be the last link of the chain, outside of wrappers that change updates "
        "(optax.contrib.mechanize, optax.contrib.schedule_free); optax.lookahead is "
        "not supported. Copies, such as an average of the parameters, need "
        "apply_masks(copy, masks).",
    ),
    "negative": (
        "pruned weights are -0.0",
        "A pruned weight is +0.0 after optax.apply_updates; -0.0 comes from a product "
        "with a mask, or from a change of sign. apply_masks(params, masks) makes it "
        "+0.0.",
    ),
}


# Compiled, because without jit an operation writes an array as large as the leaf.


@jax.jit
def _count_zeros(values: jax.Array) -> Count:
    """How many values are zero or False."""
    return count_true(~is_nonzero(values))


def _live_channels(leaf: Any, axis: int) -> np.ndarray:
    """Return which channels have a value that is not zero, bool (channels,)."""
    if isinstance(leaf, jax.Array):
        return np.asarray(_compiled_live_channels(leaf, axis))
    # NumPy's arrays need no program for each of their shapes, and may be of a dtype
    # that JAX would narrow, in which the smallest numbers are zero.
    live = np.moveaxis(np.asarray(leaf) != 0, axis, 0)
    return live.any(axis=tuple(range(1, live.ndim)))


@functools.partial(jax.jit, static_argnums=1)
def _compiled_live_channels(values: jax.Array, axis: int) -> jax.Array:
    """Find channels with a value that is not zero, without an array like the leaf."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    return jnp.any(is_nonzero(values), axis=others)


@jax.jit
def _failures(leaf: jax.Array, mask: jax.Array | None) -> _Failures:
    """Count what breaks the promise in one leaf; a dense leaf has no mask."""
    finite = jnp.isfinite(leaf)
    if mask is None:
        return _Failures(count_true(~finite), Count.of(0), Count.of(0))
    nonzero = is_nonzero(leaf)
    mask = laid_out_like(mask, leaf)
    return _Failures(
        not_finite=count_true(~finite),
        revived=count_true(~mask & finite & nonzero),
        negative=count_true(~mask & ~nonzero & jnp.signbit(leaf.astype(jnp.float32))),
    )


def _fraction(count: Count, size: int) -> jax.Array:
    """A count over a size, float32: exactly 1 of all, and 0 of nothing."""
    return _ratio(count, Count.of(max(size, 1)))


@jax.jit
def _ratio(count: Count, size: Count) -> jax.Array:
    """A count over a size. Both are rounded alike, so equal counts give exactly 1."""
    return count.as_float() / size.as_float()


_add = jax.jit(Count.__add__)


def _together(scalars: Any) -> Any:
    """Moves scalars to the devices of the first of them, so that JAX can add them.

    Parameters may lie on different parts of a mesh, as in a pipeline. Scalars that are
    bound to no device, and traced ones, stay as they are.
    """

    def is_bound(scalar: Any) -> bool:
        return not is_traced(scalar) and scalar.committed

    bound = [scalar for scalar in jax.tree.leaves(scalars) if is_bound(scalar)]

    def moved(scalar: jax.Array) -> jax.Array:
        if not is_bound(scalar):
            return scalar
        return jax.device_put(scalar, bound[0].sharding)

    return jax.tree.map(moved, scalars)
