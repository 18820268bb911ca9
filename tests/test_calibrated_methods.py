"""Pruning with inputs: the methods at their edges, rules, norms, dtypes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from tests.calibration import (
    METHODS,
    error,
    inputs_like,
    sparse_gpt,
    wanda,
    weights_like,
)
from tests.helpers import enable_x64


def linear(params, x):
    return x @ params["kernel"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_as_many_zeros_as_prune_makes(method, sparsity):
    """SparseGPT over blocks that do not divide the inputs; Wanda in each output."""
    params = {"kernel": weights_like(0, 50, 12)}
    x = inputs_like(1, 80, 50)
    pruned, masks = gp.prune_calibrated(linear, params, [x], sparsity, method=method)
    _, magnitude = gp.prune(params, sparsity)
    mask = np.asarray(masks["kernel"])
    assert mask.sum() == np.asarray(magnitude["kernel"]).sum()
    if isinstance(method, gp.Wanda):
        assert len(set(mask.sum(0))) == 1
    np.testing.assert_array_equal(np.asarray(pruned["kernel"])[~mask], 0)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_weights_of_64_bits_under_strict_promotion(method):
    with enable_x64(), jax.numpy_dtype_promotion("strict"):
        params = {"kernel": jnp.asarray(weights_like(0, 16, 4), jnp.float64)}
        x = jnp.asarray(inputs_like(1, 32, 16), jnp.float64)
        pruned, _ = gp.prune_calibrated(linear, params, [x], 0.5, method=method)
    assert pruned["kernel"].dtype == jnp.float64


@pytest.mark.parametrize("block_size", [1, 7, 16, 1000])
@pytest.mark.parametrize("pattern", [None, (2, 4), (3, 8)])
def test_every_size_of_blocks(block_size, pattern):
    kernel, x = weights_like(0, 24, 10), inputs_like(1, 90, 24)
    structure, width, sparsity = None, 1, 0.5
    if pattern is not None:
        structure, width = gp.NM(*pattern), pattern[1]
        sparsity = 1 - pattern[0] / pattern[1]
    pruned, masks = gp.prune_calibrated(
        linear,
        {"kernel": kernel},
        [x],
        sparsity,
        structure=structure,
        method=gp.SparseGPT(block_size=block_size),
    )
    whole = min(-(-block_size // width) * width, 24 if 24 % width == 0 else 10**6)
    wanted, mask = sparse_gpt(kernel, x, sparsity, pattern, block_size=whole)
    assert np.mean(np.asarray(masks["kernel"]) != mask) < 0.02
    assert error(kernel, pruned["kernel"], x) < 1.03 * error(kernel, wanted, x)


def test_errors_are_in_the_order_of_the_papers():
    kernel, x = weights_like(0, 64, 32), inputs_like(1, 300, 64)
    params = {"kernel": kernel}
    magnitude, _ = gp.prune(params, 0.6)
    errors = [error(kernel, magnitude["kernel"], x)]
    for method in METHODS.values():
        pruned, _ = gp.prune_calibrated(linear, params, [x], 0.6, method=method)
        errors.append(error(kernel, pruned["kernel"], x))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_inputs_that_are_always_zero_go_first(method):
    x = inputs_like(0, 60, 16)
    x[:, 3::4] = 0
    kernel = weights_like(1, 16, 8)
    kernel[3::4] *= 100
    params = {"kernel": kernel}
    pruned, masks = gp.prune_calibrated(linear, params, [x], 0.25, method=method)
    assert not np.asarray(masks["kernel"])[3::4].any()
    assert error(kernel, pruned["kernel"], x) < 1e-6
    # Those that stay among them are not changed.
    pruned, masks = gp.prune_calibrated(linear, params, [x], 0.125, method=method)
    mask = np.asarray(masks["kernel"])
    np.testing.assert_array_equal(np.asarray(pruned["kernel"])[mask], kernel[mask])


@pytest.mark.parametrize("damping", [0.0, 1e-8])
def test_a_factorisation_that_fails_is_tried_with_more_damping(damping):
    """Fewer samples than inputs, so the matrix has no inverse."""
    kernel, x = weights_like(0, 64, 16), inputs_like(1, 8, 64)
    method = gp.SparseGPT(damping=damping)
    pruned, masks = gp.prune_calibrated(
        linear, {"kernel": kernel}, [x], 0.5, method=method
    )
    assert np.isfinite(np.asarray(pruned["kernel"])).all()
    assert np.asarray(masks["kernel"]).mean() == 0.5
    magnitude, _ = gp.prune({"kernel": kernel}, 0.5)
    assert (
        error(kernel, pruned["kernel"], x) < error(kernel, magnitude["kernel"], x) / 2
    )


def test_no_damping_helps():
    class Broken(gp.SparseGPT):
        def statistic(self, inputs):
            return -1e20 * super().statistic(inputs)

    with pytest.raises(ValueError, match="the inputs of 'kernel' give a matrix"):
        gp.prune_calibrated(
            linear,
            {"kernel": weights_like(0, 8, 4)},
            [inputs_like(1, 9, 8)],
            0.5,
            method=Broken(),
        )


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_inputs_does_not_matter(scale):
    params = {"kernel": weights_like(0, 32, 8)}
    x = inputs_like(1, 100, 32)
    for method in METHODS.values():
        plain, scaled = (
            gp.prune_calibrated(linear, params, [rows], 0.5, method=method)[1]
            for rows in (x, x * np.float32(scale))
        )
        differ = np.asarray(plain["kernel"]) != np.asarray(scaled["kernel"])
        assert np.mean(differ) < 0.02


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_narrow_weights(dtype, method):
    kernel = weights_like(0, 32, 8).astype(dtype)
    x = inputs_like(1, 100, 32)

    def fn(params, x):
        return x @ params["kernel"].astype(jnp.float32)

    pruned, masks = gp.prune_calibrated(fn, {"kernel": kernel}, [x], 0.5, method=method)
    assert pruned["kernel"].dtype == dtype
    wanted = wanda(kernel.astype(np.float32), x, 0.5)
    if isinstance(method, gp.Wanda):
        assert np.mean(np.asarray(masks["kernel"]) != wanted) < 0.05  # near-ties
        kept = np.asarray(masks["kernel"])
        np.testing.assert_array_equal(
            np.asarray(pruned["kernel"], np.float32)[kept],
            kernel.astype(np.float32)[kept],
        )
    assert np.asarray(masks["kernel"]).mean() == 0.5


def test_rules_give_every_weight_its_own_sparsity():
    params = {name: {"kernel": weights_like(i, 32, 32)} for i, name in enumerate("abc")}
    schedules = [gp.polynomial_schedule(s, 0, 100) for s in (0.25, 0.75)]
    rules = [
        gp.Rule(None, where="c/.*"),
        gp.Rule(schedules[0], where="a/.*"),
        gp.Rule(schedules[1]),
    ]

    def fn(params, x):
        for layer in params.values():
            x = jnp.tanh(linear(layer, x))
        return x

    _, masks = gp.prune_calibrated(fn, params, [inputs_like(0, 40, 32)], rules)
    kept = {
        name: np.asarray(m["kernel"]).mean() for name, m in masks.items() if name != "c"
    }
    assert kept == {"a": 0.75, "b": 0.25}
    assert not jax.tree.leaves(masks["c"])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_erk_keeps_narrow_layers_denser(method):
    params = {"wide": {"kernel": weights_like(0, 64, 64)}}
    params["narrow"] = {"kernel": weights_like(1, 64, 8)}

    def fn(params, x):
        return linear(params["narrow"], jnp.tanh(linear(params["wide"], x)))

    rule = gp.Rule(gp.one_shot_schedule(0.8, 0), allocation="erk")
    x = inputs_like(0, 100, 64)
    _, masks = gp.prune_calibrated(fn, params, [x], rule, method=method)
    planned = {leaf.path: leaf for leaf in gp.plan(rule, params).leaves}
    for name, layer in masks.items():
        kept = np.asarray(layer["kernel"]).sum()
        # Wanda keeps as many of each output, so it rounds for each of them.
        outputs = layer["kernel"].shape[1]
        slack = outputs / 2 if isinstance(method, gp.Wanda) else 0
        assert abs(kept - planned[f"{name}/kernel"].kept) <= slack


def test_norms_are_those_of_the_dense_network():
    params = {
        "a": {"kernel": weights_like(0, 16, 8), "bias": np.ones(8, np.float32)},
        "conv": {"kernel": weights_like(1, 3, 3, 2, 4)},
    }
    x = inputs_like(2, 36 * 3, 16)

    def fn(params, x):
        x = jnp.maximum(linear(params["a"], x) + params["a"]["bias"], 0)
        image = x.reshape(-1, 6, 12, 4)[..., :2]
        return nn.Conv(4, (3, 3), use_bias=False).apply(
            {"params": params["conv"]}, image
        )

    norms = gp.input_norms(fn, params, [x[:72], x[72:]])
    wanted = np.linalg.norm(x, axis=0)[:, None]
    np.testing.assert_allclose(
        norms["a"]["kernel"], np.broadcast_to(wanted, (16, 8)), rtol=1e-5
    )
    assert not jax.tree.leaves(norms["a"]["bias"])
    assert norms["conv"]["kernel"].shape == (3, 3, 2, 4)
    hidden = np.maximum(x @ params["a"]["kernel"] + 1, 0).reshape(-1, 6, 12, 4)
    np.testing.assert_allclose(
        norms["conv"]["kernel"][1, 1, :, 0],
        np.sqrt((hidden[..., :2] ** 2).sum((0, 1, 2))),
        rtol=1e-5,
    )


def test_a_score_of_norms_is_wanda():
    kernel, x = weights_like(0, 32, 8), inputs_like(1, 90, 32)
    params = {"kernel": kernel}
    norms = gp.input_norms(linear, params, [x])
    scores = {"kernel": jnp.abs(kernel) * norms["kernel"]}
    _, masks = gp.prune(scores, 0.5, stack_axis=1)
    _, wanted = gp.prune_calibrated(linear, params, [x], 0.5)
    np.testing.assert_array_equal(masks["kernel"], wanted["kernel"])


@dataclasses.dataclass(frozen=True)
class Recording(gp.CalibratedMethod):
    """Another method, with a list of what it was asked."""

    inner: gp.CalibratedMethod
    seen: list

    def statistic(self, inputs):
        return self.inner.statistic(inputs)

    def prune(self, weights, statistic, target):
        self.seen.append((target.name, target.sparsity, weights.shape))
        return self.inner.prune(weights, statistic, target)


def test_a_method_of_ones_own_sees_matrices():
    method = Recording(gp.Wanda(), [])
    params = {"kernel": weights_like(0, 3, 3, 2, 4)}
    fn = nn.Conv(4, (3, 3), use_bias=False).apply
    gp.prune_calibrated(
        lambda params, x: fn({"params": params}, x),
        params,
        [inputs_like(0, 36, 2).reshape(1, 6, 6, 2)],
        0.5,
        method=method,
    )
    assert method.seen == [("kernel", 0.5, (1, 4, 18))]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("enabled", [False, True])
def test_weights_that_stay_keep_all_their_digits(method, enabled):
    kernel = weights_like(0, 16, 8).astype(np.float64) / 3
    x = inputs_like(1, 40, 16)
    with x64(enabled):
        pruned, masks = gp.prune_calibrated(
            linear, {"kernel": kernel}, [x], 0.5, method=method
        )
    assert pruned["kernel"].dtype == np.float64
    mask = np.asarray(masks["kernel"])
    assert not np.asarray(pruned["kernel"])[~mask].any()
    if isinstance(method, gp.Wanda):
        kept = np.asarray(pruned["kernel"])[mask]
        np.testing.assert_array_equal(kept, kernel[mask])


def x64(enabled):
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(enabled)
    from jax.experimental import enable_x64

    return enable_x64(enabled)


def test_what_is_made_up_for_stays_within_a_narrow_dtype():
    x = np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    for value, dtype in ((40_000, np.float16), (448, jnp.float8_e4m3fn)):
        pruned, _ = gp.prune_calibrated(
            lambda params, x: x @ params["kernel"].astype(jnp.float32),
            {"kernel": jnp.full((2, 1), value, dtype)},
            [x],
            0.5,
            method=gp.SparseGPT(),
        )
        found = np.asarray(pruned["kernel"], np.float32).ravel()
        np.testing.assert_array_equal(found, [0, jnp.finfo(dtype).max])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_weight_without_elements(method, shape):
    params = {"kernel": np.zeros(shape, np.float32)}
    x = np.ones((3, shape[0]), np.float32)
    pruned, masks = gp.prune_calibrated(linear, params, [x], 0.5, method=method)
    assert pruned["kernel"].shape == masks["kernel"].shape == shape


def test_the_factorisation_is_tried_again_under_debug_nans():
    params = {"kernel": weights_like(0, 8, 4)}
    with jax.debug_nans(True):
        pruned, _ = gp.prune_calibrated(
            linear, params, [inputs_like(1, 4, 8)], 0.5, method=gp.SparseGPT(damping=0)
        )
    assert np.isfinite(np.asarray(pruned["kernel"])).all()


def test_progress_bar(capsys):
    params = {"kernel": weights_like(0, 8, 4)}
    gp.prune_calibrated(linear, params, [inputs_like(0, 9, 8)], 0.5, progress=True)
    assert "calibration" in capsys.readouterr().out
