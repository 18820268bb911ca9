"""Keras on JAX: `GradualPrune` in `model.fit`, with the promises of the other links."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp

pytest.importorskip("keras")
import keras
from keras import layers

from gradprune_jax import keras as gpk
from tests.keras_models import (
    SCHEDULE,
    batch_of,
    check_exact,
    cnn,
    fit,
    lstm,
    shared,
    values,
)

# Keras' own variables, when they become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:")


@pytest.fixture(autouse=True)
def _fresh():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (cnn, ["dense/kernel", "first/kernel", "separable/pointwise_kernel"]),
        (
            lstm,
            [
                "dense/kernel",
                "embedding/embeddings",
                "lstm/lstm_cell/kernel",
                "lstm/lstm_cell/recurrent_kernel",
            ],
        ),
        (shared, ["both/kernel", "dense/kernel"]),
    ],
)
def test_models_are_pruned_exactly(make, names):
    model = make()
    planned = gpk.plan(model, SCHEDULE, total_steps=9)
    found = sorted(leaf.path.removeprefix("sequential/") for leaf in planned.pruned)
    assert found == names
    assert all(leaf.kept == leaf.size // 4 for leaf in planned.pruned)
    history = fit(
        model, gpk.GradualPrune("adam", SCHEDULE), callbacks=[gpk.LogSparsity()]
    )
    check_exact(model, planned)
    logged = history.history["sparsity"]
    # The first mask update is that of step 1, at the initial sparsity; the last, of
    # step 7, is in the eighth batch.
    assert logged[0] == logged[1] == 0
    assert 0 < logged[4] < 0.75
    assert logged[7] == logged[8] == 0.75
    assert int(model.optimizer.prune_state.prune_state.count) == 9


def test_the_same_bits_as_optax():
    """SGD with momentum and weights decayed: weights and masks as with optax."""
    model = shared()
    inputs, targets = batch_of(model)
    start = {v.path: v.value for v in model.trainable_variables}
    tx = gp.with_gradual_prune(
        optax.chain(optax.trace(0.5), optax.scale(-0.125)), SCHEDULE, where=".*kernel"
    )

    def loss_fn(params):
        variables = [params[v.path] for v in model.trainable_variables]
        outputs, _ = model.stateless_call(variables, [], inputs)
        return jnp.mean((outputs - targets) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for _ in range(9):
        params, state = step(params, state)
    optimizer = keras.optimizers.SGD(0.125, momentum=0.5)
    fit(model, gpk.GradualPrune(optimizer, SCHEDULE), batch=(inputs, targets))
    for path, mask in gpk.get_masks(model).items():
        if isinstance(mask, jax.Array):
            np.testing.assert_array_equal(mask, gp.get_masks(state)[path])
        np.testing.assert_allclose(values(model)[path], params[path], atol=1e-5)


def test_one_trace_and_nothing_baked_in(monkeypatch):
    traces = []
    apply = gpk.GradualPrune.apply
    monkeypatch.setattr(
        gpk.GradualPrune, "apply", lambda *a: (traces.append(1), apply(*a))[1]
    )
    model = shared()
    fit(model, gpk.GradualPrune("adam", SCHEDULE))
    assert len(traces) == 1
    masks = gpk.get_masks(model)
    # A second fit goes on from the masks that are there, set by hand or not.
    for variable in model.optimizer._state_variables:
        if variable.dtype == "bool":
            variable.assign(jnp.zeros(variable.shape, bool))
    model.fit(*batch_of(model), verbose=0)
    assert not any(np.any(values(model)[path]) for path in masks if "kernel" in path)


def test_errors_of_a_step_are_not_hidden():
    model = shared()
    fit(model, gpk.GradualPrune("adam", SCHEDULE), epochs=1)
    inputs, targets = batch_of(model)
    with pytest.raises((TypeError, ValueError), match="incompatible shapes"):
        model.fit(inputs, targets[:, :3], verbose=0)


def test_eager_steps_do_not_compile_anew():
    layer = layers.Dense(4)
    layer.build((None, 8))
    optimizer = gpk.GradualPrune("sgd", SCHEDULE)
    variables = layer.trainable_variables
    gradients = [jnp.ones(v.shape) for v in variables]
    optimizer.apply(gradients, variables)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patched:
        compiled = []
        logger = logging.getLogger("jax._src.interpreters.pxla")
        patched.setattr(logger, "handle", lambda record: compiled.append(record))
        optimizer.apply(gradients, variables)
        first = len(compiled)
        optimizer.apply(gradients, variables)
    assert len(compiled) == first


def test_decay_is_excluded_where_the_optimizer_is_told():
    kernel = keras.Variable(np.ones((4, 4), np.float32), name="kernel")
    inner = keras.optimizers.SGD(0.5, weight_decay=0.5)
    optimizer = gpk.GradualPrune(inner, gp.one_shot_schedule(0.5, step=9))
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    optimizer.apply([jnp.zeros((4, 4))], [kernel])
    assert (np.asarray(kernel.value) == 1).all()


def test_updates_are_counted_and_not_batches():
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=4)
    model = shared()
    fit(model, gpk.GradualPrune(optimizer, SCHEDULE), epochs=32)
    assert int(model.optimizer.prune_state.prune_state.count) == 8
    check_exact(model, gpk.plan(model, SCHEDULE))


def test_averages_decay_and_constraints_do_not_revive():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(8, kernel_constraint=keras.constraints.UnitNorm()),
            layers.Dense(4),
        ]
    )
    optimizer = keras.optimizers.AdamW(
        1e-2, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=None
    )
    fit(model, gpk.GradualPrune(optimizer, SCHEDULE), epochs=12)
    # The average of the weights, which Keras puts into the model in the end, remembers
    # weights from before the pruning.
    check_exact(model, gpk.plan(model, SCHEDULE))


def test_loss_scales():
    model = shared()
    optimizer = keras.optimizers.LossScaleOptimizer(
        gpk.GradualPrune("adam", SCHEDULE), initial_scale=8.0
    )
    history = fit(model, optimizer, callbacks=[gpk.LogSparsity()])
    assert history.history["sparsity"][-1] == 0.75
    check_exact(model, gpk.plan(model, SCHEDULE))
    with pytest.raises(ValueError, match="put it outside"):
        gpk.GradualPrune(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), SCHEDULE
        )


def test_learning_rates_are_those_of_the_optimizer():
    model = shared()
    callback = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1))
    fit(model, gpk.GradualPrune("sgd", SCHEDULE), epochs=2, callbacks=[callback])
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.25


@pytest.mark.parametrize(
    "fields",
    [
        {"structure": gp.NM(2, 4), "schedule": 0.5},
        {"structure": gp.Channel()},
        {"allocation": "global"},
        {"score": gp.Movement()},
        {"score": gp.Fisher(0.9)},
    ],
)
def test_everything_that_rules_say(fields):
    model = shared()
    sparsity = fields.pop("schedule", 0.75)
    schedule = gp.polynomial_schedule(sparsity, 1, 7, every=3)
    fit(model, gpk.GradualPrune("adam", schedule, **fields))
    gpk.check_pruned(model)
    masks = gpk.get_masks(model)
    assert float(gp.sparsity(masks)["total"]) == sparsity


def test_depthwise_kernels_by_choice():
    model = cnn()
    optimizer = gpk.GradualPrune("adam", SCHEDULE, where=".*(kernel)")
    fit(model, optimizer)
    masks = gpk.get_masks(model)
    assert isinstance(masks["sequential/depthwise_conv2d/kernel"], jax.Array)
    assert isinstance(masks["sequential/separable/depthwise_kernel"], jax.Array)


@pytest.mark.parametrize(
    ("name", "is_depthwise"),
    [
        ("depthwise_conv2d_3", True),
        ("conv_dw_13", True),
        ("block_1_depthwise", True),
        ("block1a_dwconv2", True),
        ("dwconv2", True),
        ("dense", False),
        ("dwarf", False),
        ("conv_pw_1", False),
    ],
)
def test_names_of_depthwise_layers(name, is_depthwise):
    leaf = jax.ShapeDtypeStruct((3, 3, 8, 1), jnp.float32)
    assert gpk.variables.is_weight((f"model/{name}/kernel",), leaf) != is_depthwise


def test_a_loop_of_ones_own():
    """`optimizer.apply` outside of `fit`, eagerly."""
    layer = layers.Dense(4)
    layer.build((None, 8))
    optimizer = gpk.GradualPrune("sgd", gp.one_shot_schedule(0.5, 1))
    variables = layer.trainable_variables
    for _ in range(3):
        optimizer.apply([jnp.ones(v.shape) for v in variables], variables)
    assert int(np.count_nonzero(np.asarray(layer.kernel.value))) == 16


def test_on_eight_devices():
    devices = jax.devices()
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["both/kernel"] = (None, "model")
    distribution = keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch"
    )
    with distribution.scope():
        model = shared()
        fit(model, gpk.GradualPrune("adam", SCHEDULE))
    kernel = next(v for v in model.trainable_variables if v.path == "both/kernel")
    mask = gpk.get_masks(model)["both/kernel"]
    assert not kernel.value.sharding.is_fully_replicated
    assert mask.sharding.is_equivalent_to(kernel.value.sharding, 2)
    check_exact(model, gpk.plan(model, SCHEDULE))


def test_refused():
    model = shared()
    model.compile(optimizer="adam", loss="mse")
    with pytest.raises(ValueError, match=r"compile it with GradualPrune"):
        gpk.get_masks(model)
    model.compile(optimizer=gpk.GradualPrune("adam", SCHEDULE), loss="mse")
    with pytest.raises(ValueError, match="not built yet"):
        gpk.get_masks(model)
    unbuilt = keras.Sequential([layers.Dense(3)])
    unbuilt.compile(optimizer=gpk.GradualPrune("adam", SCHEDULE), loss="mse")
    with pytest.raises(ValueError, match="not built"):
        gpk.set_masks(unbuilt, {})
    unbuilt.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)  # as if nothing had been
    with pytest.raises(ValueError, match="write it in the rules"):
        gpk.GradualPrune("adam", [gp.Rule(SCHEDULE)], where=".*")
    accumulating = keras.optimizers.SGD(0.01, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        gpk.GradualPrune(accumulating, SCHEDULE, score=gp.Saliency())
    with pytest.raises(ValueError, match="matches no"):
        fit(model, gpk.GradualPrune("adam", SCHEDULE, where="nothing"))
    with pytest.raises(ValueError, match="not built"):
        gpk.plan(keras.Sequential([layers.Dense(3)]), SCHEDULE)
