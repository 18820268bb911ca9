"""The network of the demonstration, in both Flax APIs, with the same parameter paths.

A strided 5x5 convolution, a 3x3 convolution, pooling, and two dense layers: 0.8
million parameters, nearly all of them in the first dense layer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen, nnx

from gradprune_jax.demo.data import CLASSES, IMAGE_SHAPE

CHANNELS = (32, 64)
HIDDEN = 256

# The first dense layer sees this grid of image positions, CHANNELS[-1] numbers each.
GRID = (IMAGE_SHAPE[0] // 4, IMAGE_SHAPE[1] // 4)
FIRST_DENSE_KERNEL = "dense1/kernel"


class LinenNetwork(linen.Module):
    """The network as a Linen module.

    Attributes:
      channels: of the two convolutions.
      hidden: units of the first dense layer.
    """

    channels: tuple[int, int] = CHANNELS
    hidden: int = HIDDEN

    @linen.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits, float32 (n, 10), of uint8 images (n, 28, 28, 1)."""
        x = _scale(images)
        x = linen.Conv(self.channels[0], (5, 5), strides=2, name="conv1")(x)
        x = linen.Conv(self.channels[1], (3, 3), name="conv2")(linen.relu(x))
        x = _max_pool(linen.relu(x)).reshape(len(x), -1)
        x = linen.Dense(self.hidden, name="dense1")(x)
        return linen.Dense(CLASSES, name="dense2")(linen.relu(x))


class NnxNetwork(nnx.Module):
    """The network as an NNX module."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        inputs = GRID[0] * GRID[1] * CHANNELS[1]
        self.conv1 = nnx.Conv(1, CHANNELS[0], (5, 5), strides=2, rngs=rngs)
        self.conv2 = nnx.Conv(CHANNELS[0], CHANNELS[1], (3, 3), rngs=rngs)
        self.dense1 = nnx.Linear(inputs, HIDDEN, rngs=rngs)
        self.dense2 = nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits, float32 (n, 10), of uint8 images (n, 28, 28, 1)."""
        x = nnx.relu(self.conv1(_scale(images)))
        x = nnx.relu(self.conv2(x))
        x = _max_pool(x).reshape(len(x), -1)
        return self.dense2(nnx.relu(self.dense1(x)))


def _scale(images: jax.Array) -> jax.Array:
    """Scale pixels to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def _max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum of each 2x2 window of (n, h, w, c), h and w even.

    The gradient of `max_pool` is a scatter, which halves the speed of the whole
    training step on CPU; that of a maximum over axes is not.
    """
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
