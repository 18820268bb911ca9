"""Models and train states of Flax, and the containers of other libraries."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import gradprune_jax as gp
from tests.helpers import zeros

SCHEDULE = gp.polynomial_schedule(0.75, begin_step=0, end_step=4, every=2)


def test_flax_train_state():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
    params = model.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
    tx = optax.chain(optax.adam(1e-2), gp.gradual_prune(SCHEDULE))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state, inputs):
        gradients = jax.grad(
            lambda p: jnp.mean(state.apply_fn({"params": p}, inputs) ** 2)
        )(state.params)
        return state.apply_gradients(grads=gradients)

    for i in range(5):
        state = step(state, jax.random.normal(jax.random.key(i), (4, 8)))
    gp.check_pruned(state.params, state.opt_state)
    assert zeros(gp.get_masks(state.opt_state))["total"] == 0.75
    assert zeros(gp.get_masks(state))["total"] == 0.75


class Perceptron(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(16, 4, rngs=rngs)])

    def __call__(self, inputs):
        return self.layers[0](nnx.relu(self.norm(self.first(inputs))))


@pytest.mark.parametrize("wrapped", [False, True])
def test_nnx_optimizer(wrapped):
    """nnx.State, nnx.Optimizer as parameter containers crash in others."""
    model = Perceptron(nnx.Rngs(0))
    tx = (
        gp.with_gradual_prune(optax.adam(1e-2), SCHEDULE)
        if wrapped
        else optax.chain(optax.adam(1e-2), gp.gradual_prune(SCHEDULE))
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs):
        gradients = nnx.grad(lambda m: jnp.mean(m(inputs) ** 2))(model)
        optimizer.update(model, gradients)

    for i in range(5):
        step(model, optimizer, jax.random.normal(jax.random.key(i), (4, 8)))
    params = nnx.state(model, nnx.Param)
    for state in (optimizer, optimizer.opt_state):
        gp.check_pruned(params, state)
        masks = gp.get_masks(state)
        assert zeros(masks) == {
            "first/kernel": 0.75,
            "layers/0/kernel": 0.75,
            "total": 0.75,
        }
    leaves = jax.tree.leaves(masks)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == bool for leaf in leaves)
    assert float(gp.metrics(optimizer)["sparsity/total"]) == 0.75

    ones = jax.tree.map(jnp.ones_like, masks)
    optimizer.opt_state = gp.set_masks(optimizer.opt_state, ones)
    assert zeros(gp.get_masks(optimizer))["total"] == 0
    step(model, optimizer, jnp.ones((4, 8)))


def test_linen_boxes_are_pruned_and_reported_like_plain_parameters():
    dense = nn.Dense(
        6, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "x"))
    )
    boxed = dense.init(jax.random.key(0), jnp.ones((1, 8)))["params"]
    plain = nn.unbox(boxed)
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    results = []
    for params in (boxed, plain):
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        params = optax.apply_updates(params, updates)
        gp.check_pruned(params, state)
        results.append((nn.unbox(params), nn.unbox(gp.get_masks(state)), state))
    chex.assert_trees_all_equal(results[0][0], results[1][0])
    chex.assert_trees_all_equal(results[0][1], results[1][1])
    # Boxed parameters with plain masks, and the other way round.
    gp.check_pruned(boxed_like(boxed, results[1][0]), results[1][2])
    gp.check_pruned(results[0][0], results[0][2])
    assert zeros(gp.apply_masks(boxed, results[1][1]))["kernel"] == 0.5
    assert nn.get_partition_spec(results[0][2].masks)["kernel"] == (
        jax.sharding.PartitionSpec(None, "x")
    )


def boxed_like(boxed, plain):
    return jax.tree.unflatten(jax.tree.structure(boxed), jax.tree.leaves(plain))


def test_equinox_and_haiku_models():
    equinox = pytest.importorskip("equinox")
    haiku = pytest.importorskip("haiku")
    mlp = equinox.filter(
        equinox.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), equinox.is_array
    )
    net = haiku.transform(lambda x: haiku.nets.MLP([8, 2])(x))
    for params in (mlp, net.init(jax.random.key(0), jnp.ones((1, 4)))):
        tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        params = optax.apply_updates(params, updates)
        gp.check_pruned(params, state)
        assert float(gp.sparsity(state.masks)["total"]) == 0.5


def test_lists_tuples_and_frozen_dicts_as_containers():
    from flax.core import freeze

    for params in (
        [{"kernel": jnp.ones((2, 4))}, ({"w": jnp.ones((4, 4))}, jnp.ones(3))],
        freeze({"a": {"kernel": jnp.ones((2, 4))}}),
    ):
        tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
        updates, state = jax.jit(tx.update)(params, tx.init(params), params)
        gp.check_pruned(optax.apply_updates(params, updates), state)
        assert float(gp.sparsity(gp.get_masks(state))["total"]) == 0.5
