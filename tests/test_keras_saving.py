"""Keras on JAX: masks in files, and in the next session."""

import jax
import numpy as np
import pytest

import gradprune_jax as gp

pytest.importorskip("keras")
import keras
from keras import layers

from gradprune_jax import keras as gpk
from tests.keras_models import (
    RNG,
    SCHEDULE,
    batch_of,
    check_exact,
    fit,
    shared,
    values,
)

# Keras' own variables, when they become NumPy arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:")


@pytest.fixture(autouse=True)
def _fresh():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)


def test_saved_and_loaded(tmp_path):
    """In the middle of the window: training goes on as if nothing had happened."""
    model = shared()
    batch = batch_of(model)
    optimizer = gpk.GradualPrune(keras.optimizers.AdamW(1e-2), SCHEDULE)
    fit(model, optimizer, epochs=4, batch=batch)
    file = tmp_path / "model.keras"
    model.save(file)
    loaded = keras.saving.load_model(file)
    assert isinstance(loaded.optimizer, gpk.GradualPrune)
    assert loaded.optimizer.rules == model.optimizer.rules
    for each in (model, loaded):
        each.fit(*batch, 16, 5, verbose=0, shuffle=False)
    planned = gpk.plan(loaded, SCHEDULE)
    check_exact(loaded, planned)
    masks, others = gpk.get_masks(model), gpk.get_masks(loaded)
    for (path, weights), (_, again) in zip(
        values(model).items(), values(loaded).items(), strict=True
    ):
        np.testing.assert_array_equal(weights, again, err_msg=path)
    for path, mask in masks.items():
        if isinstance(mask, jax.Array):
            np.testing.assert_array_equal(mask, others[path])


class Subclassed(keras.Model):
    def __init__(self, **fields):
        super().__init__(**fields)
        self.one, self.other = layers.Dense(8), layers.Dense(8)

    def call(self, x):
        return self.other(self.one(x))


def test_masks_are_loaded_by_position(tmp_path):
    """Names are counted up: dense_9 and dense_10 in one session, dense in the next."""
    inputs = RNG.normal(size=(16, 8)).astype(np.float32)
    for _ in range(9):
        layers.Dense(1)
    model = Subclassed()
    model.compile(optimizer=gpk.GradualPrune("adam", SCHEDULE), loss="mse")
    model.fit(inputs, inputs, 16, 9, verbose=0)
    assert [v.path.split("/")[-2] for v in model.trainable_variables[::2]] == [
        "dense_9",
        "dense_10",
    ]
    before = [np.asarray(v.value) for v in model.trainable_variables]
    model.save_weights(tmp_path / "model.weights.h5")
    keras.utils.clear_session()
    other = Subclassed()
    other.compile(optimizer=gpk.GradualPrune("adam", SCHEDULE), loss="mse")
    other(inputs)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    gpk.check_pruned(other)
    other.fit(inputs, inputs, 16, 1, verbose=0)
    for old, new in zip(before, other.trainable_variables, strict=True):
        assert not np.asarray(new.value)[old == 0].any() or old.ndim == 1


def test_masks_of_a_sparse_model_are_set(tmp_path):
    model = shared()
    fit(model, gpk.GradualPrune("adam", SCHEDULE))
    masks = gpk.get_masks(model)
    later = gp.polynomial_schedule(0.9, begin_step=1, end_step=7, every=3)
    model.compile(optimizer=gpk.GradualPrune("adam", later), loss="mse")
    gpk.set_masks(model, masks)
    model.fit(*batch_of(model), 16, 9, verbose=0)
    check_exact(model, gpk.plan(model, later))
    for path, mask in gpk.get_masks(model).items():
        if isinstance(mask, jax.Array):
            assert not (np.asarray(mask) & ~np.asarray(masks[path])).any()


def test_a_planned_budget_is_trained_to_and_saved(tmp_path):
    model = shared()
    planned = gpk.plan(model, SCHEDULE, budget=50)
    fit(model, gpk.GradualPrune("adam", list(planned.rules)))
    kernels = [v for path, v in values(model).items() if path.endswith("kernel")]
    assert sum(int((kernel != 0).sum()) for kernel in kernels) == planned.kept[0]
    model.save(tmp_path / "model.keras")


def test_functions_cannot_be_saved(tmp_path):
    model = shared()
    rule = gp.Rule(SCHEDULE, where=lambda path, leaf: path[-1].endswith("kernel"))
    fit(model, gpk.GradualPrune("sgd", [rule]), epochs=1)
    with pytest.raises(ValueError, match="where"):
        model.save(tmp_path / "model.keras")
