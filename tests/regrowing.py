"""What the tests of sparse training share: a whole run of it by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradprune_jax as gp
from gradprune_jax._scores import uniform
from tests import oracle

SHAPES = {"first": (8, 16), "second": (16, 24)}


WINDOW = dict(begin_step=0, end_step=9, every=3, drop_fraction=0.5)


STEPS = 11


def make_tree(seed, dtype=np.float32):
    """Numbers of few bits, with many ties, and a leaf that stays dense."""
    rng = np.random.default_rng(seed)
    tree = {
        name: {"kernel": (rng.integers(-16, 17, size=shape) / 8).astype(dtype)}
        for name, shape in SHAPES.items()
    }
    return tree | {"bias": np.ones(4, dtype)}


def drop_fraction(step):
    turned = np.cos(np.pi * (step - WINDOW["begin_step"]) / WINDOW["end_step"])
    return np.float32(WINDOW["drop_fraction"] / 2 * (1 + turned))


def moved_masks(mask, weights, scores, step):
    """The masks after an update: drop the smallest, grow the highest."""
    live = int(mask.sum())
    exact = oracle.Fraction(float(drop_fraction(step))) * live
    moved = round(exact)
    kept = oracle.top_k(np.where(mask, np.abs(weights), oracle.PRUNED), live - moved)
    grown = oracle.top_k(np.where(kept, oracle.PRUNED, scores), moved)
    return kept | grown


def numpy_run(grow, masks, dtype):
    """Weights, masks and momentum after every step, by NumPy."""
    params = make_tree(0, dtype)
    trace = jax.tree.map(np.zeros_like, params)
    masks = dict(masks)
    for step in range(STEPS):
        gradients = make_tree(step + 1, dtype)
        for name in SHAPES:
            old = masks[name]
            weights = params[name]["kernel"].copy()
            gradient = gradients[name]["kernel"]
            masked = np.where(old, gradient, 0).astype(dtype)
            trace[name]["kernel"] = (
                masked + trace[name]["kernel"] * np.asarray(0.5, dtype)
            ).astype(dtype)
            if grow and step < WINDOW["end_step"] and step % WINDOW["every"] == 0:
                scores = np.abs(gradient.astype(np.float64))
                if grow == "random":
                    index = jnp.arange(gradient.size, dtype=jnp.uint32)
                    drawn = uniform(7, f"{name}/kernel", index, jnp.uint32(step + 1))
                    scores = np.asarray(drawn).reshape(gradient.shape)
                masks[name] = moved_masks(old, weights, scores, step)
            stays = old & masks[name]
            changed = old ^ masks[name]
            step_size = np.asarray(-0.125, dtype) * trace[name]["kernel"]
            trace[name]["kernel"][changed] = 0
            params[name]["kernel"] = np.where(
                stays, (weights + step_size).astype(dtype), 0
            ).astype(dtype)
        yield params, masks, trace


def make_transformation(grow, **fields):
    return gp.with_sparse_training(
        optax.sgd(0.125, momentum=0.5), 0.75, grow=grow, seed=7, **WINDOW, **fields
    )


def compare(state, params, expected):
    """The masks, the weights and the momentum, bit for bit."""
    weights, masks, trace = expected
    found = gp.get_masks(state)
    for name in SHAPES:
        own = np.asarray(params[name]["kernel"])
        np.testing.assert_array_equal(np.asarray(found[name]["kernel"]), masks[name])
        np.testing.assert_array_equal(own, weights[name]["kernel"])
        assert not np.signbit(own[~masks[name]].astype(np.float32)).any()
        np.testing.assert_array_equal(
            np.asarray(state.inner_state[0].trace[name]["kernel"]),
            trace[name]["kernel"],
        )
