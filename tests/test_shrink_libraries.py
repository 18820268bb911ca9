"""Shrink on the models of nnx, Haiku and Equinox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradprune_jax as gp
from tests.networks import KEY, assert_same, dense, killed


def test_nnx_models_by_split_and_merge():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.last = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def fn(params, x):
        return nnx.merge(graph, params, rest)(x)

    x = dense(0, 3, 4)
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert shrunk.params["first"]["kernel"].shape == (4, 4)
    assert_same(fn, smaller, shrunk, x)


@pytest.mark.parametrize("fast", [True, False])
def test_haiku_functions(fast):
    """In two passes a variance adds the mean squared where a channel is zero.

    That is one number for all such channels, and is added instead.
    """
    hk = pytest.importorskip("haiku")

    def net(x):
        x = jax.nn.relu(hk.Conv2D(8, 3)(x))
        norm = hk.LayerNorm(-1, True, True, use_fast_variance=fast)
        lstm = hk.LSTM(6)
        x = norm(x).mean((1, 2))[:, None]
        x, _ = hk.dynamic_unroll(lstm, x, lstm.initial_state(1))
        return hk.Linear(2)(x[:, 0])

    model = hk.without_apply_rng(hk.transform(net))
    x = dense(0, 4, 6, 6, 1)
    params = model.init(KEY, x)
    smaller, groups = killed(model.apply, params, x)
    shrunk = gp.shrink(model.apply, smaller, x)
    assert len(groups.free) == 2
    assert shrunk.params["lstm/linear"]["b"].shape == (12,)
    assert shrunk.params["conv2_d"]["w"].shape == (3, 3, 1, 4)
    for batch in (x, dense(1, 9, 6, 6, 1), -3 * x):
        assert_same(model.apply, smaller, shrunk, batch)


def test_equinox_layers_with_a_norm_in_two_passes():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(KEY, 4)
    model = {
        "embed": eqx.nn.Linear(3, 8, key=keys[0]),
        "norm": eqx.nn.LayerNorm(8),
        "attention": eqx.nn.MultiheadAttention(2, 8, key=keys[1]),
        "rms": eqx.nn.RMSNorm(8),
        "head": eqx.nn.Linear(8, 2, key=keys[2]),
    }
    params, static = eqx.partition(model, eqx.is_array)

    def one(model, x):
        x = jax.vmap(model["embed"])(x)
        y = jax.vmap(model["norm"])(x)
        x = x + model["attention"](y, y, y)
        return jax.vmap(model["head"])(jax.nn.gelu(jax.vmap(model["rms"])(x)))

    def fn(params, x):
        return jax.vmap(lambda x: one(eqx.combine(params, static), x))(x)

    x = jax.random.normal(KEY, (4, 5, 3))
    smaller, groups = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert not shrunk.needed
    for group in groups.free:
        assert shrunk.sizes[group.name] == (group.size, group.size // 2), group
    for batch in (x, jax.random.normal(KEY, (7, 5, 3)) * 10):
        assert_same(fn, smaller, shrunk, batch)

    def loss(fn):
        return lambda params: jnp.sum(fn(params, x) ** 2)

    wanted = shrunk.cut(jax.grad(loss(fn))(smaller))
    found = jax.grad(loss(shrunk.fn))(shrunk.params)
    for one_leaf, other in zip(
        jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_allclose(one_leaf, other, rtol=1e-3, atol=1e-4)


def test_equinox_modules_by_partition():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, width_size=8, depth=2, key=KEY)
    params, static = eqx.partition(model, eqx.is_array)

    def fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    x = dense(0, 5, 3)
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert shrunk.params.layers[1].weight.shape == (4, 4)
    assert_same(fn, smaller, shrunk, x)
