"""What the tests of scores share: parameters, and the scores by NumPy."""

import jax
import numpy as np

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.75, begin_step=1, end_step=5, every=2)


SHAPES = {"first": {"kernel": (8, 16)}, "second": {"kernel": (16, 24)}}


def make_tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (np.round(rng.normal(size=shape) * 8) / 8).astype(dtype),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def numpy_scores(score, weights, gradients, state):
    """The new state and the scores, by NumPy in float32."""
    weights, gradients = (each.astype(np.float32) for each in (weights, gradients))
    match score:
        case gp.Saliency():
            return state, np.abs(weights * gradients)
        case gp.Fisher():
            decay, rest = np.float32(score.decay), np.float32(1 - score.decay)
            state = decay * state + rest * (gradients * gradients)
            return state, weights * weights * state
        case gp.Movement():
            state = state - weights * gradients
            return state, state
        case _:
            return state, weights - 2 * gradients


def top_k(scores, mask, kept):
    """The live ones among the first of a stable descending sort, NaN first."""
    flat, live = scores.astype(np.float64).ravel(), mask.ravel()
    nan = np.isnan(flat)
    order = np.lexsort((-np.where(nan, 0, flat), ~nan, ~live))
    chosen = np.zeros(flat.size, bool)
    chosen[order[:kept]] = True
    return (chosen & live).reshape(mask.shape)
