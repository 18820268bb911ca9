"""Models of Keras, and what several tests ask of them."""

import jax
import keras
import numpy as np
from keras import layers

import gradprune_jax as gp
from gradprune_jax import keras as gpk

SCHEDULE = gp.polynomial_schedule(0.75, begin_step=1, end_step=7, every=3)
RNG = np.random.default_rng(0)


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="first"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.SeparableConv2D(4, 2, name="separable"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )


def lstm():
    return keras.Sequential(
        [keras.Input((6,)), layers.Embedding(20, 8), layers.LSTM(8), layers.Dense(4)]
    )


def shared():
    one, other = keras.Input((8,)), keras.Input((8,))
    layer = layers.Dense(8, activation="relu", name="both")
    merged = layers.Concatenate()([layer(one), layer(other)])
    return keras.Model([one, other], layers.Dense(4)(merged))


def batch_of(model, size=16):
    inputs = [
        RNG.integers(0, 20, (size, *x.shape[1:]))
        if "embedding" in [each.name for each in model.layers]
        else RNG.normal(size=(size, *x.shape[1:])).astype(np.float32)
        for x in model.inputs
    ]
    targets = RNG.normal(size=(size, 4)).astype(np.float32)
    return (inputs if len(inputs) > 1 else inputs[0]), targets


def fit(model, optimizer, epochs=9, callbacks=(), batch=None, **compiling):
    """One batch an epoch."""
    inputs, targets = batch or batch_of(model)
    model.compile(optimizer=optimizer, loss="mse", **compiling)
    return model.fit(
        inputs, targets, 16, epochs, verbose=0, callbacks=list(callbacks), shuffle=False
    )


def values(model):
    return {v.path: np.asarray(v.value) for v in model.trainable_variables}


def check_exact(model, planned):
    gpk.check_pruned(model)
    masks = gpk.get_masks(model)
    pruned = {leaf.path: leaf.kept for leaf in planned.pruned}
    assert {p for p, mask in masks.items() if isinstance(mask, jax.Array)} == set(
        pruned
    )
    for path, kept in pruned.items():
        mask = np.asarray(masks[path])
        zeros = values(model)[path][~mask]
        assert mask.sum() == kept
        assert (zeros == 0).all()
        assert not np.signbit(zeros).any()
