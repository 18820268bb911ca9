"""Pruning with inputs: meshes and devices, what is compiled and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradprune_jax as gp
from tests.calibration import METHODS, inputs_like, weights_like


def linear(params, x):
    return x @ params["kernel"]


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_masks_are_those_of_one_device(kind, method):
    params = {
        "a": {"kernel": weights_like(0, 32, 64)},
        "b": {"kernel": weights_like(1, 64, 16)},
    }
    x = inputs_like(2, 64, 32)

    def fn(params, x, **fields):
        hidden = jnp.maximum(linear(params["a"], x), 0)
        return jnp.einsum("bi,io->bo", hidden, params["b"]["kernel"], **fields)

    alone = gp.prune_calibrated(fn, params, [x], 0.5, method=method)
    mesh = jax.make_mesh(
        (4, 2), ("data", "model"), axis_types=(getattr(AxisType, kind),) * 2
    )
    specs = {"a": PartitionSpec(None, "model"), "b": PartitionSpec("model", None)}
    batch = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", None)))
    laid_out = {
        name: {
            "kernel": jax.device_put(layer["kernel"], NamedSharding(mesh, specs[name]))
        }
        for name, layer in params.items()
    }
    fields = {"out_sharding": PartitionSpec("data", None)} if kind == "Explicit" else {}
    with jax.set_mesh(mesh):
        found = gp.prune_calibrated(
            lambda params, x: fn(params, x, **fields),
            laid_out,
            [batch],
            0.5,
            method=method,
        )
        jax.block_until_ready(found)
    for name in params:
        assert found[0][name]["kernel"].sharding.spec == specs[name]
        assert found[1][name]["kernel"].sharding.spec == specs[name]
        np.testing.assert_array_equal(
            found[1][name]["kernel"], alone[1][name]["kernel"]
        )
        np.testing.assert_allclose(
            found[0][name]["kernel"], alone[0][name]["kernel"], rtol=1e-3, atol=1e-4
        )


def test_alike_layers_are_compiled_once(monkeypatch):
    """Layers that are written out one by one share their compiled pieces."""
    traced = []

    class Counting(gp.Wanda):
        def statistic(self, inputs):
            traced.append(inputs.shape)
            return super().statistic(inputs)

    params = {f"layer_{i}": {"kernel": weights_like(i, 16, 16)} for i in range(6)}

    def fn(params, x):
        for layer in params.values():
            x = jnp.tanh(linear(layer, x))
        return x

    batches = [inputs_like(i, 10, 16) for i in range(3)]
    with jax.log_compiles(False):
        gp.prune_calibrated(fn, params, batches, 0.5, method=Counting())
    # One trace to tell each piece from the others; none for later batches.
    assert len(traced) <= 6 + 2


def test_activations_of_one_layer_at_a_time():
    """What no later piece reads is not kept."""
    from gradprune_jax._calibration.evaluation import Evaluation

    params = {f"layer_{i}": {"kernel": weights_like(i, 16, 16)} for i in range(4)}
    kept = []
    run = Evaluation._run

    def spy(self, program, inputs, turns):
        generator = run(self, program, inputs, turns)
        for stop in generator:
            values = generator.gi_frame.f_locals["values"]
            shapes = [np.shape(v) for v in values.values() if np.shape(v) == (10, 16)]
            kept.append(len(shapes))
            yield stop

    def fn(params, x):
        for layer in params.values():
            x = jnp.tanh(linear(layer, x))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "_run", spy)
        gp.prune_calibrated(fn, params, [inputs_like(0, 10, 16)], 0.5)
    assert kept == [1, 1, 1, 1]


def test_results_are_committed_as_the_parameters_were():
    params = {"kernel": jnp.asarray(weights_like(0, 16, 8))}
    x = inputs_like(1, 16, 16)
    for given in (params, jax.device_put(params, jax.devices()[3])):
        pruned, masks = gp.prune_calibrated(linear, given, [x], 0.5)
        for tree in (pruned, masks):
            assert tree["kernel"].committed == given["kernel"].committed
            assert tree["kernel"].devices() == given["kernel"].devices()


def test_a_pipeline_over_devices():
    first, second = jax.devices()[1:3]
    params = {
        "a": jax.device_put({"kernel": weights_like(0, 16, 8)}, first),
        "b": jax.device_put({"kernel": weights_like(1, 8, 8)}, second),
    }

    def fn(params, x):
        hidden = jax.device_put(linear(params["a"], x), second)
        return linear(params["b"], hidden)

    x = inputs_like(1, 16, 16)
    for method in METHODS.values():
        pruned, _ = gp.prune_calibrated(fn, params, [x], 0.5, method=method)
        assert pruned["b"]["kernel"].devices() == {second}
