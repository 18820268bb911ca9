"""A network of three layers, two of which can be cut, as several tests take it."""

import functools

import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp


def dense(params, x):
    """Three layers with biases; the middle two have free dimensions."""
    x = jnp.maximum(x @ params["w1"] + params["b1"], 0)
    x = jnp.maximum(x @ params["w2"] + params["b2"], 0)
    return x @ params["w3"]


def dense_params(seed=0, widths=(4, 6, 10, 3)):
    rng = np.random.default_rng(seed)
    one, two, three, four = widths
    return {
        "w1": jnp.asarray(rng.normal(size=(one, two)), jnp.float32),
        "b1": jnp.asarray(rng.normal(size=two), jnp.float32),
        "w2": jnp.asarray(rng.normal(size=(two, three)), jnp.float32),
        "b2": jnp.asarray(rng.normal(size=three), jnp.float32),
        "w3": jnp.asarray(rng.normal(size=(three, four)), jnp.float32),
    }


@functools.cache
def dense_groups(widths=(4, 6, 10, 3)):
    return gp.channel_groups(
        dense, dense_params(widths=widths), jnp.ones((2, widths[0]))
    )
