"""What the masks must be, by sorting in NumPy."""

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import gradprune_jax as gp


def kept_count(size: int, sparsity: float) -> int:
    """n - round(s n), halves to even, and one at least unless s is 1."""
    exact = Fraction(float(np.float32(sparsity)))
    return max(size - round(exact * size), min(size, 1) if exact < 1 else 0)


def top_k(scores: np.ndarray, kept: int) -> np.ndarray:
    """The first `kept` of a stable descending sort, NaN before everything."""
    flat = scores.astype(np.float64).ravel()
    nan = np.isnan(flat)
    order = np.lexsort((-np.where(nan, 0.0, flat), ~nan))  # stable
    chosen = np.zeros(flat.size, bool)
    chosen[order[:kept]] = True
    return chosen.reshape(scores.shape)


def next_masks(
    weights: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    sparsity: float,
    *,
    allocation: str = "uniform",
    stack_axis: int | None = None,
    min_density: float = 0.0,
) -> list[np.ndarray]:
    """The masks after a mask update, by one sort for each group."""
    scores = [
        np.where(mask, np.abs(leaf.astype(np.float64)), 0.0)
        for leaf, mask in zip(weights, masks, strict=True)
    ]
    if allocation == "global":
        selected = _global_top_k(scores, sparsity, min_density)
    else:
        selected = [_top_k_of_slices(leaf, sparsity, stack_axis) for leaf in scores]
    return [mask & new for mask, new in zip(masks, selected, strict=True)]


def _top_k_of_slices(
    scores: np.ndarray, sparsity: float, stack_axis: int | None
) -> np.ndarray:
    if stack_axis is None:
        return top_k(scores, kept_count(scores.size, sparsity))
    slices = np.moveaxis(scores, stack_axis, 0)
    new = [top_k(part, kept_count(part.size, sparsity)) for part in slices]
    return np.moveaxis(np.reshape(new, slices.shape), 0, stack_axis)


def _global_top_k(
    scores: Sequence[np.ndarray], sparsity: float, min_density: float
) -> list[np.ndarray]:
    density = Fraction(str(min_density))
    least = [-(-leaf.size * density // 1) for leaf in scores]
    first = [top_k(leaf, int(kept)) for leaf, kept in zip(scores, least, strict=True)]
    flat = np.concatenate([leaf.ravel() for leaf in scores])
    flat_first = np.concatenate([leaf.ravel() for leaf in first])
    kept = max(kept_count(flat.size, sparsity), int(sum(least)))
    nan = np.isnan(flat)
    order = np.lexsort((-np.where(nan, 0.0, flat), ~nan, ~flat_first))
    chosen = np.zeros(flat.size, bool)
    chosen[order[:kept]] = True
    ends = np.cumsum([leaf.size for leaf in scores])[:-1]
    parts = np.split(chosen, ends)
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, scores, strict=True)]


def assert_follows(
    tx, schedule: gp.SparsitySchedule, params: dict, steps: int, *, update, **fields
) -> dict:
    """Trains for `steps` steps and compares every mask with the oracle, bit for bit.

    Args:
      tx: the transformation, jitted update and all, whose state is a pruning state.
      schedule: its schedule.
      params: a flat dictionary; every leaf of it is pruned.
      steps: how many.
      update: maps (step, params) to the updates that enter the transformation.
      **fields: of the rule, as for `next_masks`.
    """
    state = tx.init(params)
    step_fn = jax.jit(tx.update)
    masks = [np.ones(np.shape(leaf), bool) for leaf in params.values()]
    for step in range(steps):
        if schedule.is_update_step(step):
            weights = [np.asarray(leaf) for leaf in params.values()]
            sparsity = float(schedule.sparsity(step))
            masks = next_masks(weights, masks, sparsity, **fields)
        updates, state = step_fn(update(step, params), state, params)
        params = jax.tree.map(
            lambda p, u: jnp.asarray(p + u).astype(p.dtype), params, updates
        )
        for name, mask in zip(params, masks, strict=True):
            np.testing.assert_array_equal(np.asarray(state.masks[name]), mask)
            pruned = np.asarray(params[name])[~mask]
            is_positive_zero = (pruned == 0) & ~np.signbit(pruned.astype(np.float32))
            finite = np.isfinite(pruned.astype(np.float32))
            assert (is_positive_zero | ~finite).all()
    return params


def difficult_weights(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Weights with many ties, zeros of both signs, denormals, infinities and NaNs."""
    kind = rng.integers(0, 5)
    weights = rng.normal(size=shape).astype(np.float64)
    if kind == 1:
        weights = np.round(weights)
    elif kind == 2:
        weights = np.where(rng.random(shape) < 0.8, -0.0, weights)
    elif kind == 3:
        weights = np.full(shape, rng.normal())
    weights = weights.astype(dtype)
    if kind == 4:
        finfo = ml_dtypes.finfo(dtype)
        special = np.array(
            [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, finfo.max, finfo.tiny],
            dtype,
        )
        special = np.append(special, np.array([finfo.smallest_subnormal] * 2, dtype))
        weights = rng.choice(np.append(special, weights.ravel()[:6]), size=shape)
    return weights
