"""A small model after one pruning step, with its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradprune_jax as gp

SCHEDULE = gp.one_shot_schedule(0.5, 0)


def train_one_step():
    """Parameters and state of one pruning step."""
    rng = np.random.default_rng(0)
    params = {
        "a": {
            "kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
            "bias": jnp.zeros(6),
        },
        "b": {"kernel": jnp.asarray(rng.normal(size=(6, 2)), jnp.bfloat16)},
    }
    tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(SCHEDULE))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    return tx, optax.apply_updates(params, updates), state
