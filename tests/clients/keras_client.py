# /// script
# requires-python = ">=3.11"
# dependencies = ["keras>=3.10"]
# ///
"""Keras: a MobileNet of its applications and a transformer, by `fit` and `save`."""

import collections
import time

import jax
import numpy as np
import pytest

import gradprune_jax as gp
from gradprune_jax import keras as gpk
from tests.clients import harness

import keras  # isort: skip  # after gradprune_jax.keras, which chooses its backend

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
LINK = "compile(optimizer=gpk.GradualPrune(optimizer, schedule))"


def mobilenet():
    return keras.applications.MobileNet((32, 32, 3), 0.25, weights=None, classes=10)


def transformer():
    tokens = keras.Input((12,), dtype="int32")
    x = keras.layers.Embedding(64, 32)(tokens)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 8)(x, x, use_causal_mask=True)
        x = keras.layers.LayerNormalization()(x + attended)
        y = keras.layers.Dense(32)(keras.layers.Dense(64, activation="gelu")(x))
        x = keras.layers.LayerNormalization()(x + y)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(10)(x))


def batches(model, count):
    rng = np.random.default_rng(0)
    shape = model.inputs[0].shape[1:]
    inputs = (
        rng.normal(size=(8 * count, *shape)).astype(np.float32)
        if len(shape) == 3
        else rng.integers(0, 64, (8 * count, *shape))
    )
    return inputs, rng.integers(0, 10, 8 * count)


def first_step(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    begin = time.perf_counter()
    model.fit(*batches(model, 1), batch_size=8, verbose=0)
    return time.perf_counter() - begin


def values(model):
    """In the order of the model, as masks are."""
    return collections.OrderedDict((v.path, v.value) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("make", "what", "dense"),
    [
        (mobilenet, "MobileNet, fit", lambda path: "conv_dw_" in path),
        (transformer, "transformer, fit", lambda path: path.endswith("/bias")),
    ],
)
def test_a_model(make, what, dense, tmp_path):
    without = first_step(make(), keras.optimizers.Adam())
    model = make()
    planned = gpk.plan(model, SCHEDULE, total_steps=12)
    missed = [leaf.path for leaf in planned.leaves if leaf.is_missed]
    assert all(map(dense, missed))
    assert len(missed) == (13 if make is mobilenet else 6)
    with_link = first_step(model, gpk.GradualPrune(keras.optimizers.Adam(), SCHEDULE))
    inputs, targets = batches(model, 5)
    model.fit(inputs, targets, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")  # in the middle of the window
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert harness.same(values(loaded), values(model))
    assert harness.same(gpk.get_masks(loaded), gpk.get_masks(model))
    logger = gpk.LogSparsity()
    history = loaded.fit(
        inputs, targets, batch_size=8, epochs=2, verbose=0, callbacks=[logger]
    )
    state = loaded.optimizer.prune_state
    harness.check_exact(values(loaded), state, planned)
    assert float(gp.sparsity(gp.get_masks(state))["total"]) == pytest.approx(
        0.9, abs=1e-3
    )
    assert history.history["sparsity"][-1] == pytest.approx(0.9, abs=1e-3)
    harness.record("keras", what, LINK, planned, without=without, with_link=with_link)


def test_every_device_has_the_same_masks():
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=jax.devices())
    )
    try:
        model = transformer()
        first_step(model, gpk.GradualPrune(keras.optimizers.Lion(), SCHEDULE))
        model.fit(*batches(model, 12), batch_size=8, verbose=0)
        planned = gpk.plan(model, SCHEDULE)
        harness.check_exact(values(model), model.optimizer.prune_state, planned)
    finally:
        keras.distribution.set_distribution(None)
