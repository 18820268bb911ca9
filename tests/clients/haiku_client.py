# /// script
# requires-python = ">=3.11"
# dependencies = ["dm-haiku>=0.0.14"]
# ///
"""Haiku: a convolutional network and its batch norm, in the loop of its examples."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
LINK = "optax.chain(optax.adam(1e-3), gp.gradual_prune(schedule))"


def network(images):
    return hk.nets.ResNet18(10, resnet_v2=True)(images, is_training=True)


def test_a_residual_network():
    model = hk.without_apply_rng(hk.transform_with_state(network))
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    labels = jnp.arange(4)
    first, others = model.init(jax.random.key(1), images)
    planned = gp.plan(SCHEDULE, first, total_steps=12)

    def train(tx, updates):
        @jax.jit
        def step(params, others, opt_state):
            def loss_fn(params):
                logits, new = model.apply(params, others, images)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), new

            gradients, others = jax.grad(loss_fn, has_aux=True)(params)
            changes, opt_state = tx.update(gradients, opt_state, params)
            return optax.apply_updates(params, changes), others, opt_state

        carry = (first, others, tx.init(first))
        took = harness.seconds(lambda: step(*carry))
        for _ in range(updates):
            carry = step(*carry)
        return carry, took

    _, without = train(optax.adam(1e-3), 0)
    tx = optax.chain(optax.adam(1e-3), gp.gradual_prune(SCHEDULE))
    (params, _, opt_state), with_link = train(tx, 12)
    harness.check_exact(params, opt_state, planned)
    missed = {leaf.path.split("/")[-1] for leaf in planned.leaves if leaf.is_missed}
    assert missed == {"scale", "offset"}  # of batch norm, which have four axes
    harness.record(
        "dm-haiku",
        "ResNet-18, own loop",
        LINK,
        planned,
        without=without,
        with_link=with_link,
    )
