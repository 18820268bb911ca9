"""Line searches: a loss that optax keeps is that of the masked parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.75, 2, 6, every=2)
TARGETS = np.random.default_rng(0).normal(size=(12, 6)).astype("f")


def loss_fn(params):
    errors = params["kernel"] - TARGETS
    return jnp.sum(errors**2) + jnp.sum(jnp.cos(params["kernel"])) + 100


OPTIMIZERS = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0),
        optax.scale_by_backtracking_linesearch(15, store_grad=True),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_the_state_keeps_is_what_is_true_of_the_parameters(name):
    """The loss at the unpruned point was 44,770 where it was 1.5."""
    tx = gp.with_gradual_prune(OPTIMIZERS[name](), SCHEDULE)
    value_and_grad = optax.value_and_grad_from_state(loss_fn)
    params = {"kernel": jnp.asarray(TARGETS * 3)}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, gradients = value_and_grad(params, state=state)
        kept = optax.tree.get(state, "value")
        updates, state = tx.update(
            gradients, state, params, value=value, grad=gradients, value_fn=loss_fn
        )
        return optax.apply_updates(params, updates), state, value, gradients, kept

    used = 0
    for _ in range(12):
        masks = gp.get_masks(state)["kernel"]
        true_value, true_gradients = jax.value_and_grad(loss_fn)(params)
        params, state, value, gradients, kept = step(params, state)
        used += bool(jnp.isfinite(kept))
        np.testing.assert_allclose(value, true_value, rtol=1e-5)
        np.testing.assert_allclose(
            np.where(masks, gradients["kernel"], 0),
            np.where(masks, true_gradients["kernel"], 0),
            rtol=1e-3,
            atol=1e-3,
        )
    assert used == 8  # of 12 steps: not the first, nor those after the three updates
    gp.check_pruned(params, state)
    assert float(gp.sparsity(params)["kernel"]) == 0.75


def test_arguments_of_the_loss_are_passed_on_by_name():
    def loss(params, scale):
        return scale * loss_fn(params)

    tx = gp.with_gradual_prune(OPTIMIZERS["backtracking"](), SCHEDULE)
    params = {"kernel": jnp.asarray(TARGETS * 3)}
    state = tx.init(params)
    value, gradients = jax.value_and_grad(loss)(params, 2.0)
    updates, state = tx.update(
        gradients, state, params, value=value, grad=gradients, value_fn=loss, scale=2.0
    )
    params = optax.apply_updates(params, updates)
    assert float(optax.tree.get(state, "value")) == pytest.approx(
        float(loss(params, 2.0))
    )


def test_mechanize_goes_inside_the_chain_and_check_pruned_tells_if_it_does_not():
    """It makes the parameters anew from where they began, without the link's zeros."""
    params = {"kernel": jnp.asarray(TARGETS)}
    schedule = gp.one_shot_schedule(0.5, 0)

    def train(tx):
        state = tx.init(params)
        step = jax.jit(tx.update)
        trained = params
        for _ in range(4):
            updates, state = step(jax.grad(loss_fn)(trained), state, trained)
            trained = optax.apply_updates(trained, updates)
        return trained, state

    inside = optax.chain(
        optax.contrib.mechanize(optax.adam(1e-2)), gp.gradual_prune(schedule)
    )
    gp.check_pruned(*train(inside))
    outside = optax.contrib.mechanize(
        optax.chain(optax.adam(1e-2), gp.gradual_prune(schedule))
    )
    with pytest.raises(ValueError, match="mechanize"):
        gp.check_pruned(*train(outside))


def test_set_masks_forgets_the_loss_of_other_masks():
    tx = gp.with_gradual_prune(optax.lbfgs(), gp.one_shot_schedule(0.5, 50))
    params = {"kernel": jnp.asarray(TARGETS * 3)}
    value, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(
        gradients,
        tx.init(params),
        params,
        value=value,
        grad=gradients,
        value_fn=loss_fn,
    )
    params, masks = gp.prune(optax.apply_updates(params, updates), 0.5)
    state = gp.set_masks(state, masks)
    value, _ = optax.value_and_grad_from_state(loss_fn)(params, state=state)
    assert float(value) == pytest.approx(float(loss_fn(params)))
