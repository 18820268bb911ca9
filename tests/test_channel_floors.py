"""Floors by output channel: no filter dies, in training, in plans and at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.95, 0, 3, every=1)


def kernel(shape, seed=0):
    """Output channels of very different scales, of which most would die."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** -np.arange(shape[-1])
    return (rng.normal(size=shape) * scales).astype("f")


def standardised_loss(params, images):
    weights = params["kernel"]
    normalised = (weights - weights.mean(0)) / weights.std(0)
    return jnp.mean((images @ normalised) ** 2)


def train(**fields):
    params = {"kernel": jnp.asarray(kernel((20, 6)))}
    images = np.random.default_rng(1).normal(size=(8, 20)).astype("f")
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.sgd(1e-6),
        gp.gradual_prune(SCHEDULE, **fields),
    )
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(standardised_loss)(params, images)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    return params, state


def test_a_layer_that_divides_by_its_deviation_stays_finite():
    params, _ = train()
    assert np.isnan(params["kernel"]).any()  # what happens without a floor
    params, state = train(min_per_channel=2)
    gp.check_pruned(params, state)
    assert np.count_nonzero(params["kernel"], 0).min() == 2


def test_a_plan_counts_the_floor():
    params = {"kernel": kernel((20, 6))}
    plan = gp.plan(SCHEDULE, params, min_per_channel=2)
    assert plan.leaves[0].kept == plan.kept[0] == 12  # and not 6
    assert plan.leaves[0].final_sparsity == pytest.approx(0.9)
    pruned, masks = gp.prune(params, 0.95, min_per_channel=2)
    assert int(masks["kernel"].sum()) == 12
    together = gp.plan(SCHEDULE, params, min_per_channel=2, allocation="global")
    assert together.kept[0] == 12
    assert together.leaves[0].kept is None


def test_a_channel_of_few_weights_keeps_them_all():
    params = {"w": np.ones((3, 4), "f")}
    _, masks = gp.prune(params, 0.9, min_per_channel=9)
    assert masks["w"].all()
    assert gp.plan(SCHEDULE, params, min_per_channel=9).kept == (12,)


def test_channels_of_kernels_that_have_outputs_first():
    params = {"weight": kernel((20, 6)).T}
    _, masks = gp.prune(params, 0.95, min_per_channel=2, output_axis=0)
    assert masks["weight"].sum(1).tolist() == [2] * 6


def test_blocks_keep_enough_weights_of_each_channel():
    params = {"w": kernel((20, 6))}
    structure = gp.Block((4, 2))  # four weights of each of two channels
    _, masks = gp.prune(params, 0.99, structure=structure, min_per_channel=5)
    assert masks["w"].sum(0).tolist() == [8] * 6
    plan = gp.plan(SCHEDULE, params, structure=structure, min_per_channel=5)
    assert plan.kept_units == (6,)


@pytest.mark.parametrize("least", [0, 2])
def test_a_traced_floor_is_that_of_a_number(least):
    """`inject_hyperparams` turns every number into an array, the default too."""
    params = {"kernel": kernel((20, 6))}
    tx = gp.gradual_prune(SCHEDULE, min_per_channel=least)
    injected = optax.inject_hyperparams(gp.gradual_prune)(
        SCHEDULE, min_per_channel=least
    )
    state, other = tx.init(params), injected.init(params)
    step, other_step = jax.jit(tx.update), jax.jit(injected.update)
    for _ in range(4):
        _, state = step(params, state, params)
        _, other = other_step(params, other, params)
    np.testing.assert_array_equal(state.masks["kernel"], gp.get_masks(other)["kernel"])
    assert state.masks["kernel"].sum(0).min() == least


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_an_empty_stacked_leaf_takes_no_part(allocation):
    kernel = jnp.arange(1.0, 33).reshape(2, 4, 4)
    params = {"a": {"kernel": kernel}, "b": {"kernel": jnp.zeros((0, 4, 4))}}
    fields = dict(stack_axis=0, min_per_channel=1, allocation=allocation)
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0), **fields)
    _, state = tx.update(params, tx.init(params), params)
    assert int(state.masks["a"]["kernel"].sum()) == 16
    assert state.masks["b"]["kernel"].shape == (0, 4, 4)
