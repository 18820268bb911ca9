# /// script
# requires-python = ">=3.11"
# dependencies = ["equinox>=0.13.8"]
# ///
"""Equinox: batch norm and stacked layers, in the loop of its examples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
RULES = [gp.Rule(SCHEDULE, where="stack/weight", stack_axis=0), gp.Rule(SCHEDULE)]
LINK = "optax.chain(optax.adamw(1e-3), gp.gradual_prune(rules))"


class Network(eqx.Module):
    """A convolution, batch norm, layers stacked by filter_vmap, and a head."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    stack: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.conv = eqx.nn.Conv2d(3, 32, 4, 4, key=keys[0])
        self.norm = eqx.nn.BatchNorm(32, axis_name="batch", mode="batch")
        layer = eqx.filter_vmap(lambda key: eqx.nn.Linear(32, 32, key=key))
        self.stack = layer(jax.random.split(keys[1], 4))
        self.head = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, image, state):
        x, state = self.norm(self.conv(image), state)
        x = jax.nn.relu(x).mean(axis=(1, 2))
        arrays, rest = eqx.partition(self.stack, eqx.is_array)

        def apply(x, layer):
            return x + jax.nn.relu(eqx.combine(layer, rest)(x)), None

        x, _ = jax.lax.scan(apply, x, arrays)
        return self.head(x), state


def make(seed):
    return eqx.nn.make_with_state(Network)(jax.random.key(seed))


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


def train(carry, tx, steps):
    """Returns what a training ends with, and the seconds of its first step."""

    def loss_fn(model, state, images, labels):
        axes = {"axis_name": "batch", "in_axes": (0, None), "out_axes": (0, None)}
        logits, state = jax.vmap(model, **axes)(images, state)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    @eqx.filter_jit
    def train_step(model, state, opt_state, images, labels):
        gradient_fn = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        (_, state), gradients = gradient_fn(model, state, images, labels)
        updates, opt_state = tx.update(gradients, opt_state, arrays(model))
        return eqx.apply_updates(model, updates), state, opt_state

    def step(number, carry):
        images = jax.random.normal(jax.random.key(number), (8, 3, 32, 32))
        return train_step(*carry, images, jnp.arange(8))

    took = harness.seconds(lambda: eqx.filter(step(0, carry), eqx.is_array))
    for number in range(steps):
        carry = step(number, carry)
    return carry, took


def test_training(tmp_path):
    model, state = make(0)
    planned = gp.plan(RULES, arrays(model), total_steps=12)
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    biases = {"conv/bias", "stack/bias", "head/bias"}
    assert dense == {*biases, "norm/weight", "norm/bias"}

    adamw = optax.adamw(1e-3)
    _, without = train((model, state, adamw.init(arrays(model))), adamw, 0)
    tx = optax.chain(adamw, gp.gradual_prune(RULES))
    first = (model, state, tx.init(arrays(model)))
    trained, with_link = train(first, tx, 12)
    model, _, opt_state = trained
    harness.check_exact(model, opt_state, planned)
    assert ((model.stack.weight != 0).sum(axis=(1, 2)) == 102).all()

    eqx.tree_serialise_leaves(tmp_path / "state.eqx", trained)
    other, state = make(1)
    like = (other, state, tx.init(arrays(other)))
    assert not harness.same(like, trained)
    restored = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", like)
    assert harness.same(restored, trained)
    resumed, _ = train(restored, tx, 3)
    assert not harness.same(resumed, trained)
    harness.check_exact(resumed[0], resumed[2], planned)
    harness.record(
        "equinox", "batch norm and stacked layers, own loop", LINK, planned,
        without=without, with_link=with_link,
    )  # fmt: skip
