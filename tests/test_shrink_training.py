"""After a cut training goes on: the optimizer's state, linen and nnx."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp
from tests.networks import KEY

SCHEDULE = gp.polynomial_schedule(0.5, begin_step=0, end_step=4, every=2)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu(nn.Dense(12)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


def loss_of(fn, x):
    return lambda params: jnp.mean((fn(params, x) - 1.0) ** 2)


def train(tx, fn, params, state, x, steps):
    @jax.jit
    def step(params, state):
        grads = jax.grad(loss_of(fn, x))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def setting():
    x = jax.random.normal(KEY, (4, 6, 6, 1))
    variables = Network().init(KEY, x)
    stats = {"batch_stats": variables["batch_stats"]}

    def fn(params, x):
        return Network().apply({"params": params, **stats}, x)

    return fn, variables["params"], x


def test_fine_tuning_goes_on_as_if_nothing_had_been_cut():
    """The small network with the cut state learns what the masked large one learns."""
    fn, params, x = setting()
    structure = gp.CoupledChannels(gp.channel_groups(fn, params, x))
    adam = optax.adam(1e-2)
    tx = optax.chain(adam, gp.gradual_prune(SCHEDULE, structure=structure))
    params, state = train(tx, fn, params, tx.init(params), x, 8)
    shrunk = gp.shrink(fn, params, x)
    assert shrunk.params["Conv_0"]["kernel"].shape == (3, 3, 1, 4)
    small_state = gp.shrink_opt_state(tx, state, shrunk)
    masks = gp.get_masks(small_state)
    assert all(bool(mask.all()) for mask in jax.tree.leaves(masks))
    small, _ = train(adam, shrunk.fn, shrunk.params, small_state[0], x, 5)
    large, _ = train(tx, fn, params, state, x, 5)
    for one, other in zip(
        jax.tree.leaves(small), jax.tree.leaves(shrunk.cut(large)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.chain(optax.clip(1.0), optax.ema(0.9), tx),
        lambda tx: optax.masked(tx, {"w1": True, "w2": False}),
        lambda tx: optax.inject_hyperparams(lambda rate: optax.adam(rate))(1e-3),
    ],
)
def test_states_of_wrapped_optimizers(wrap):
    def fn(params, x):
        return jnp.maximum(x @ params["w1"], 0) @ params["w2"]

    params = {"w1": jnp.ones((2, 3)).at[:, 1].set(0), "w2": jnp.ones((3, 1))}
    tx = wrap(optax.adam(1e-3))
    shrunk = gp.shrink(fn, params, jnp.ones((1, 2)))
    state = gp.shrink_opt_state(tx, tx.init(params), shrunk)
    wanted = tx.init(shrunk.params)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, wanted)


def test_leaves_of_another_shape_are_refused():
    def fn(params, x):
        return jnp.maximum(x @ params["w1"], 0) @ params["w2"]

    params = {"w1": jnp.ones((256, 256)).at[:, 1].set(0), "w2": jnp.ones((256, 1))}
    shrunk = gp.shrink(fn, params, jnp.ones((1, 256)))
    tx = optax.adafactor(1e-3)
    with pytest.raises(ValueError, match=r"'w1' of shape \(256,\).*w1 256x256"):
        gp.shrink_opt_state(tx, tx.init(params), shrunk)
    with pytest.raises(ValueError, match="'other' of shape"):
        shrunk.cut({"other": jnp.ones(3)})


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.hidden = nnx.Linear(8, 12, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
        return self.head(nnx.relu(self.hidden(x)))


def test_a_model_of_nnx_goes_on_with_its_own_layers():
    """Arrays are written into the model, whose layers then work unchanged."""
    model = Block(nnx.Rngs(0))
    x = jax.random.normal(KEY, (4, 6, 6, 1))
    model(x)  # batch statistics that are not those of the start
    model.eval()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def fn(params, x):
        return nnx.merge(graphdef, params, rest)(x)

    structure = gp.CoupledChannels(gp.channel_groups(fn, params, x))
    tx = optax.chain(optax.adam(1e-2), gp.gradual_prune(SCHEDULE, structure=structure))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(6):
        gradient = nnx.grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradient)
    graphdef, state = nnx.split(model)
    shrunk = gp.shrink(
        lambda state, x: nnx.merge(nnx.graphdef(model), state)(x), state, x
    )
    wanted = model(x)
    nnx.update(model, shrunk.params)
    assert model.conv.kernel.shape == (3, 3, 1, 4)
    assert model.norm.mean.shape == (4,)
    assert model.hidden.kernel.shape == (4, 6)
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-6)
    small = gp.shrink_opt_state(tx, optimizer.opt_state, shrunk)
    fine_tuning = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    fine_tuning.opt_state = nnx.data(small[0])
    before = jnp.mean((model(x) - 1.0) ** 2)
    gradient = nnx.grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
    fine_tuning.update(model, gradient)
    assert fine_tuning.step[...] == 1
    assert fine_tuning.opt_state[0].count[...] == 7
    assert jnp.mean((model(x) - 1.0) ** 2) < before
    assert model.conv.kernel.shape == (3, 3, 1, 4)
