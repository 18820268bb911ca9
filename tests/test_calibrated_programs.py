"""Pruning with inputs: programs in which a weight is not easy to follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from tests.calibration import inputs_like, weights_like

X = inputs_like(0, 20, 8)


def stacked(layers, seed=0):
    return {"kernel": weights_like(seed, layers, 8, 8)}


def norms_of(*rows):
    """Of rows that meet layers one after the other, [layers, inputs, 8]."""
    norms = np.stack([np.linalg.norm(each, axis=0) for each in rows])
    return np.broadcast_to(norms[..., None], (*norms.shape, 8))


def assert_norms(fn, params, *rows):
    found = gp.input_norms(fn, params, [X[:12], X[12:]])["kernel"]
    np.testing.assert_allclose(found.reshape(-1, 8, 8), norms_of(*rows), rtol=1e-4)
    _, masks = gp.prune_calibrated(fn, params, [X[:12], X[12:]], 0.5)
    assert np.asarray(masks["kernel"]).mean() == 0.5


def test_numbers_are_carried_beside_activations():
    def fn(params, x):
        def turn(carried, kernel):
            x, total, count = carried
            return (jnp.tanh(x @ kernel), total + x.mean(), count + 1), total

        return jax.lax.scan(turn, (x, 0.0, 0), params["kernel"])

    params = stacked(3)
    first = np.tanh(X @ params["kernel"][0])
    second = np.tanh(first @ params["kernel"][1])
    assert_norms(fn, params, X, first, second)


def test_fori_loop_with_the_same_weights():
    def fn(params, x):
        kernel = params["kernel"]
        return jax.lax.fori_loop(0, 2, lambda i, x: jnp.tanh(x @ kernel) + i, x)

    params = {"kernel": weights_like(0, 8, 8)}
    assert_norms(fn, params, np.concatenate([X, np.tanh(X @ params["kernel"])]))


def test_alike_pieces_with_other_functions_inside():
    """The text of a program does not tell one Python function from another."""

    def call(function, x):
        return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def fn(params, x):
        first, second, third = params["kernel"]
        x = call(lambda a: np.asarray(a) * 2, x @ first)
        x = call(lambda a: np.asarray(a) * 7, x @ second)
        return x @ third

    params = stacked(3)
    first, second, _ = params["kernel"]
    assert_norms(fn, params, X, 2 * X @ first, 14 * X @ first @ second)


def test_alike_pieces_with_other_constants():
    def fn(params, x):
        for factor, kernel in zip((1.0, 2.0, 4.0), params["kernel"], strict=True):
            x = x @ kernel * factor
        return x

    params = stacked(3)
    first, second, _ = params["kernel"]
    assert_norms(fn, params, X, X @ first, 2 * X @ first @ second)


def test_alike_pieces_with_unused_results():
    class PerOutput(gp.CalibratedMethod):
        def statistic(self, inputs):
            return jnp.zeros(())

        def prune(self, weights, statistic, target):
            return gp.prune(weights, target.sparsity, stack_axis=1, where=".*")

    def fn(params, x):
        first, second, third = params["kernel"]
        hidden = jnp.tanh(jnp.tanh(x @ first) @ second)
        return hidden + x @ third

    _, masks = gp.prune_calibrated(fn, stacked(3), [X], 0.5, method=PerOutput())
    assert (np.asarray(masks["kernel"]).sum(1) == 4).all()


def test_a_barrier_over_weights_and_activations():
    def fn(params, x):
        kernel, x = jax.lax.optimization_barrier(
            (params["kernel"].astype(jnp.bfloat16), x)
        )
        return x @ kernel.astype(jnp.float32)

    assert_norms(fn, {"kernel": weights_like(0, 8, 8)}, X)


def test_inputs_that_come_late_to_a_chain_of_carries():
    """In the first turns no input has reached the weight."""

    def fn(params, x):
        zeros = jnp.zeros((20, 8))
        rows = jnp.zeros((3, 20, 8)).at[0].set(1.0)[:, : len(x)]

        def turn(carried, row):
            first, second, third = carried
            return (x * row, first, second + third @ params["kernel"]), None

        start = (zeros[: len(x)],) * 3
        return jax.lax.scan(turn, start, rows)[0]

    params = {"kernel": weights_like(0, 8, 8)}
    # The weight meets 0, 0 and 0: what is put in comes to it after the last turn.
    found = gp.input_norms(fn, params, [X])["kernel"]
    np.testing.assert_array_equal(found, np.zeros((8, 8)))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrent_layer_in_both_directions(reverse):
    def fn(params, x):
        def turn(state, row):
            return jnp.tanh(row + state @ params["kernel"]), None

        rows = jnp.stack([x, 2 * x, 3 * x])
        return jax.lax.scan(turn, jnp.zeros_like(x), rows, reverse=reverse)[0]

    params = {"kernel": weights_like(0, 8, 8)}
    first = np.tanh(3 * X if reverse else X)
    second = np.tanh(2 * X + first @ params["kernel"])
    assert_norms(fn, params, np.concatenate([0 * X, first, second]))


def test_a_cast_counts_for_all_that_follows():
    """float32 to float16 to float32: what is read is what float16 holds."""

    def fn(params, x):
        first, second = params["kernel"]
        narrow = first.astype(jnp.float16).astype(jnp.float32)
        return (x @ narrow) @ second

    params = stacked(2)
    params["kernel"] *= np.float32(1 + 2**-12)
    hidden = X @ params["kernel"][0].astype(np.float16).astype(np.float32)
    assert_norms(fn, params, X, hidden)


EXPERTS = {
    "one by one": lambda kernel, x: [x[i::3] @ kernel[i] for i in range(3)],
    "split": lambda kernel, x: [
        x[i::3] @ own[0] for i, own in enumerate(jnp.split(kernel, 3))
    ],
    "fused": lambda kernel, x: [
        x[i::3] @ kernel.transpose(1, 0, 2).reshape(8, 24)[:, 8 * i : 8 * (i + 1)]
        for i in range(3)
    ],
    "cast before": lambda kernel, x: [
        x[i::3] @ kernel.astype(jnp.float64 if jax.config.x64_enabled else x.dtype)[i]
        for i in range(3)
    ],
}


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("method", [gp.Wanda(), gp.SparseGPT(block_size=4)])
def test_slices_of_a_weight_that_are_all_of_it(name, method):
    params = stacked(3)

    def fn(params, x):
        return EXPERTS[name](params["kernel"], x)

    found = gp.prune_calibrated(fn, params, [X[:18]], 0.5, method=method)
    for i in range(3):
        wanted = gp.prune_calibrated(
            lambda own, x: x @ own["kernel"],
            {"kernel": params["kernel"][i]},
            [X[:18][i::3]],
            0.5,
            method=method,
        )
        for tree, alone in zip(found, wanted, strict=True):
            np.testing.assert_allclose(
                np.asarray(tree["kernel"][i], np.float32),
                np.asarray(alone["kernel"], np.float32),
                rtol=1e-5,
                atol=1e-6,
            )


def test_layers_of_experts():
    """A scan over layers, in each of which experts are read one by one."""

    def fn(params, x):
        def turn(x, kernels):
            return sum(jnp.tanh(x @ kernels[i]) for i in range(2)), None

        return jax.lax.scan(turn, x, params["kernel"])[0]

    params = {"kernel": weights_like(0, 3, 2, 8, 8)}

    def unrolled(params, x):
        for layer in range(3):
            x = sum(jnp.tanh(x @ params[f"{layer}{i}"]["kernel"]) for i in range(2))
        return x

    apart = {
        f"{layer}{i}": {"kernel": params["kernel"][layer, i]}
        for layer in range(3)
        for i in range(2)
    }
    _, masks = gp.prune_calibrated(fn, params, [X], 0.5)
    _, wanted = gp.prune_calibrated(unrolled, apart, [X], 0.5)
    for layer in range(3):
        for i in range(2):
            np.testing.assert_array_equal(
                masks["kernel"][layer, i], wanted[f"{layer}{i}"]["kernel"]
            )
