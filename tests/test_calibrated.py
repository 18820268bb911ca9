"""Pruning with inputs: both papers, on every kind of product that reads a weight."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp
from tests.calibration import (
    METHODS,
    assert_like_numpy,
    inputs_like,
    wanda,
    weights_like,
)

PATTERNS = {"unstructured": None, "2:4": (2, 4), "1:4": (1, 4)}


def two_layers(params, x):
    return jnp.maximum(x @ params["first"]["kernel"], 0) @ params["second"]["kernel"]


@pytest.fixture(scope="module")
def perceptron():
    params = {
        "first": {"kernel": weights_like(0, 48, 32)},
        "second": {"kernel": weights_like(1, 32, 8)},
    }
    return params, inputs_like(2, 240, 48)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_two_layers_are_those_of_numpy(perceptron, name, pattern, sparsity):
    params, x = perceptron
    groups = PATTERNS[pattern]
    structure = None
    if groups is not None:
        structure, sparsity = gp.NM(*groups), 1 - groups[0] / groups[1]
    pruned, masks = gp.prune_calibrated(
        two_layers,
        params,
        np.split(x, 3),
        sparsity,
        method=METHODS[name],
        structure=structure,
    )
    first, second = (params[layer]["kernel"] for layer in params)
    check = functools.partial(
        assert_like_numpy, name, sparsity=sparsity, pattern=groups
    )
    check(first, x, pruned["first"]["kernel"], masks["first"]["kernel"])
    # The second layer is pruned with what the first one gives once it is pruned.
    hidden = np.maximum(x @ np.asarray(pruned["first"]["kernel"]), 0)
    check(second, hidden, pruned["second"]["kernel"], masks["second"]["kernel"])
    if groups is not None:
        for layer in masks.values():
            by_group = np.asarray(layer["kernel"]).T.reshape(-1, groups[1]).sum(1)
            assert set(by_group) == {groups[0]}


def test_later_layers_see_pruned_inputs(perceptron):
    """With the inputs of the dense network the second mask would be another."""
    params, x = perceptron
    _, masks = gp.prune_calibrated(two_layers, params, [x], 0.75)
    second = params["second"]["kernel"]
    unpruned = np.maximum(x @ params["first"]["kernel"], 0)
    assert np.mean(
        np.asarray(masks["second"]["kernel"]) != wanda(second, unpruned, 0.75)
    )


def test_batches_of_other_sizes_are_one_sample_each_row(perceptron):
    params, x = perceptron
    whole = gp.prune_calibrated(two_layers, params, [x], 0.5)
    uneven = gp.prune_calibrated(
        two_layers, params, (part for part in (x[:7], x[7:100], x[100:])), 0.5
    )
    jax.tree.map(np.testing.assert_array_equal, whole[1], uneven[1])


def test_batches_of_several_inputs(perceptron):
    params, x = perceptron
    parts = np.split(x, 2)
    _, wanted = gp.prune_calibrated(two_layers, params, [parts[0] * parts[1]], 0.5)

    def of_two(params, x, y):
        return two_layers(params, x * y)

    def of_any(params, *inputs):  # as flax's model.apply
        return two_layers(params, inputs[0] * inputs[1])

    def of_pair(params, pair):
        return two_layers(params, pair[0] * pair[1])

    def of_tree(params, batch):
        return two_layers(params, batch["x"] * batch["y"])

    tree = {"x": parts[0], "y": parts[1]}
    several = [(fn, (*parts,)) for fn in (of_two, of_any, of_pair)]
    for fn, batch in (*several, (of_tree, tree)):
        _, masks = gp.prune_calibrated(fn, params, [batch], 0.5)
        jax.tree.map(np.testing.assert_array_equal, masks, wanted)


def attention(params, x):
    query, key, value = (
        jnp.einsum("bsi,ihd->bshd", x, params[name]["kernel"])
        for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return jnp.einsum("bqhd,hdo->bqo", mixed, params["out"]["kernel"])


@pytest.mark.parametrize("name", METHODS)
def test_attention_by_the_axes_of_its_products(name):
    shapes = {"query": (16, 2, 8), "key": (16, 2, 8), "value": (16, 2, 8)}
    params = {
        layer: {"kernel": weights_like(seed, *shape) / 4}
        for seed, (layer, shape) in enumerate((shapes | {"out": (2, 8, 16)}).items())
    }
    x = inputs_like(5, 60, 16).reshape(6, 10, 16) / 4
    pruned, masks = gp.prune_calibrated(
        attention, params, [x[:3], x[3:]], 0.5, method=METHODS[name]
    )
    check = functools.partial(assert_like_numpy, name, sparsity=0.5)
    for layer in shapes:
        kernel, found, mask = (
            np.asarray(tree[layer]["kernel"]).reshape(16, 16)
            for tree in (params, pruned, masks)
        )
        check(kernel, x.reshape(-1, 16), found, mask)

    def until_out(params, x):
        params = params | {"out": {"kernel": jnp.eye(16).reshape(2, 8, 16)}}
        return attention(params, x)

    hidden = np.asarray(until_out(pruned, x)).reshape(-1, 16)
    kernel, found, mask = (
        np.asarray(tree["out"]["kernel"]).reshape(16, 16)
        for tree in (params, pruned, masks)
    )
    check(kernel, hidden, found, mask)


def experts(params, x):
    return jnp.einsum("eci,eio->eco", x, params["wi"])


@pytest.mark.parametrize("name", METHODS)
def test_every_expert_has_inputs_of_its_own(name):
    params = {"wi": weights_like(0, 3, 16, 8)}
    x = inputs_like(1, 120, 16).reshape(3, 40, 16)
    pruned, masks = gp.prune_calibrated(experts, params, [x], 0.5, method=METHODS[name])
    for kernel, rows, found, mask in zip(
        params["wi"], x, pruned["wi"], masks["wi"], strict=True
    ):
        assert_like_numpy(name, kernel, rows, found, mask, 0.5)


def viewed(params, x):
    """A kernel through casts, reshapes and transposes, on the left of its product."""
    kernel = params["kernel"].astype(jnp.bfloat16).reshape(4, 2, 3, 8)
    kernel = kernel.transpose(2, 3, 1, 0).reshape(24, 8)  # outputs, inputs
    return jax.jit(jnp.matmul)(kernel, x.T.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_is_followed_through_its_views(name):
    params = {"kernel": weights_like(0, 4, 48)}
    x = inputs_like(1, 100, 8)
    pruned, masks = gp.prune_calibrated(viewed, params, [x], 0.5, method=METHODS[name])

    # Inputs in the parameter's own order: of axis 0, then of the first part of axis 1.
    order = np.arange(8).reshape(2, 4).T.ravel()
    rows = np.asarray(x.astype(jnp.bfloat16), np.float32)[:, order]
    flat = [
        np.asarray(tree["kernel"]).reshape(8, 24) for tree in (params, pruned, masks)
    ]
    assert_like_numpy(name, flat[0], rows, flat[1], flat[2], 0.5)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(16, use_bias=False)(x)) + x, None


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("reverse", [False, True])
def test_stacked_layers_one_after_the_other(name, reverse):
    stack = nn.scan(
        Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
        reverse=reverse,
    )()
    x = inputs_like(0, 90, 16)
    params = stack.init(jax.random.key(0), x)

    def scanned(params, x):
        return stack.apply(params, x)[0]

    def unrolled(kernels, x):
        for kernel in kernels[::-1] if reverse else kernels:
            x = nn.relu(x @ kernel["kernel"]) + x
        return x

    (stacked,) = jax.tree.leaves(params)
    found = gp.prune_calibrated(
        scanned, params, [x[:40], x[40:]], 0.5, method=METHODS[name]
    )
    wanted = gp.prune_calibrated(
        unrolled,
        [{"kernel": kernel} for kernel in stacked],
        [x[:40], x[40:]],
        0.5,
        method=METHODS[name],
    )
    for tree, layers in zip(found, wanted, strict=True):
        (leaf,) = jax.tree.leaves(tree)
        layers = np.stack(jax.tree.leaves(layers))
        np.testing.assert_allclose(leaf, layers, rtol=1e-5, atol=1e-6)


def recurrent(params, x):
    def turn(state, row):
        state = jnp.tanh(row @ params["w_i"] + state @ params["w_h"])
        return state, state

    state, rows = jax.lax.scan(turn, jnp.zeros((x.shape[1], 12)), x)
    return rows @ params["w"]


@pytest.mark.parametrize("name", METHODS)
def test_a_recurrent_network_with_the_inputs_of_all_steps(name):
    params = {
        "w_i": weights_like(0, 8, 12) / 3,
        "w_h": weights_like(1, 12, 12) / 3,
        "w": weights_like(2, 12, 4),
    }
    x = inputs_like(3, 5 * 20, 8).reshape(5, 20, 8)
    pruned, masks = gp.prune_calibrated(
        recurrent, params, [x[:, :12], x[:, 12:]], 0.5, method=METHODS[name]
    )
    check = functools.partial(assert_like_numpy, name, sparsity=0.5)
    check(params["w_i"], x.reshape(-1, 8), pruned["w_i"], masks["w_i"])
    eye = {"w": np.eye(12, dtype=np.float32)}

    def states(own):
        """The states before each step."""
        rows = np.asarray(recurrent(own | eye, x))
        return np.concatenate([np.zeros_like(rows[:1]), rows[:-1]]), rows

    before, _ = states(params | {"w_i": pruned["w_i"]})
    check(params["w_h"], before.reshape(-1, 12), pruned["w_h"], masks["w_h"])
    _, after = states(dict(pruned))
    check(params["w"], after.reshape(-1, 12), pruned["w"], masks["w"])


def test_nnx_and_boxes_and_dtypes_stay():
    model = nnx.Sequential(
        nnx.Linear(8, 16, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16),
        nnx.relu,
        nnx.Linear(16, 4, rngs=nnx.Rngs(1)),
    )
    graphdef, params = nnx.split(model, nnx.Param)

    def fn(params, x):
        return nnx.merge(graphdef, params)(x)

    pruned, masks = gp.prune_calibrated(
        fn, params, [inputs_like(0, 30, 8)], 0.5, method=gp.SparseGPT()
    )
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, params, pruned)
    assert jax.tree.all(same)
    kept = [leaf.mean() for leaf in jax.tree.leaves(masks)]
    assert kept == [0.5, 0.5]


def test_masks_start_a_training(perceptron):
    params, x = perceptron
    tx = gp.with_gradual_prune(optax.sgd(0.1), gp.one_shot_schedule(0.5, 10**6))
    pruned, masks = gp.prune_calibrated(two_layers, params, [x], 0.5)
    state = gp.set_masks(tx.init(pruned), masks)
    gradients = jax.grad(lambda p: jnp.sum(two_layers(p, x) ** 2))(pruned)
    updates, state = tx.update(gradients, state, pruned)
    trained = optax.apply_updates(pruned, updates)
    gp.check_pruned(trained, state)
    zeros = [np.mean(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(trained)]
    assert zeros == [0.5, 0.5]
