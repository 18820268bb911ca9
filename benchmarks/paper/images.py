"""Fashion-MNIST, by dense layers, plain and depthwise-separable convolutions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.paper.task import checksum
from gradprune_jax.demo.data import CLASSES, IMAGE_SHAPE, DataError, Dataset
from gradprune_jax.demo.models import CHANNELS, HIDDEN, LinenNetwork

# Channels and strides of the layers after the first.
Layers = tuple[tuple[int, int], ...]

_TEST_BATCH = 500


class DepthwiseConv(nn.Module):
    """A depthwise 3x3 convolution as nine shifted multiply-adds.

    XLA's grouped convolution on CPU is three times slower. The kernel is shaped as in
    `nn.Conv` with as many groups as channels.

    Attributes:
      stride: of both axes.
    """

    stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (batch, height, width, channels), convolved and padded with zeros."""
        batch, height, width, channels = images.shape
        kernel = self.param(
            "kernel", nn.initializers.he_normal(), (3, 3, 1, channels), images.dtype
        )
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        strides = (1, self.stride, self.stride, 1)
        shifted = [
            jax.lax.slice(
                padded, (0, i, j, 0), (batch, i + height, j + width, channels), strides
            )
            * kernel[i, j, 0]
            for i in range(3)
            for j in range(3)
        ]
        return functools.reduce(jnp.add, shifted)


class _Normalised(nn.Module):
    """Batch normalisation and a rectifier."""

    training: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=not self.training, momentum=0.9)
        return nn.relu(norm(images))


class Perceptron(nn.Module):
    """Dense layers: LeNet-300-100 (LeCun et al., 1998) has 300 and 100 units.

    Attributes:
      units: of the hidden layers.
    """

    units: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 1)."""
        del training
        hidden = images.reshape(len(images), -1)
        for units in self.units:
            hidden = nn.relu(nn.Dense(units)(hidden))
        return nn.Dense(CLASSES)(hidden)


class DemoNetwork(nn.Module):
    """The network of `gradprune demo`: two convolutions and two dense layers.

    Attributes:
      width: what all channels and hidden units are multiplied by.
    """

    width: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 1) in [0, 1]."""
        del training
        first, second, hidden = (
            round(self.width * each) for each in (*CHANNELS, HIDDEN)
        )
        network = LinenNetwork((first, second), hidden)
        nn.share_scope(self, network)
        return network(255 * images)  # which reads bytes


class PlainNetwork(nn.Module):
    """3x3 convolutions, the mean over positions, and a classifier.

    Attributes:
      layers: channels and stride of each convolution.
    """

    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 1)."""
        for channels, stride in self.layers:
            images = nn.Conv(channels, (3, 3), stride, use_bias=False)(images)
            images = _Normalised(training)(images)
        return nn.Dense(CLASSES)(images.mean((1, 2)))


class MobileNet(nn.Module):
    """MobileNet v1 (Howard et al., 2017): depthwise 3x3, then pointwise 1x1.

    Attributes:
      first: channels of the first convolution at width 1, which has stride 2.
      layers: channels at width 1 and stride of each separable convolution.
      width: what all channels are multiplied by.
      classes: of the classifier.
    """

    first: int
    layers: Layers
    width: float = 1.0
    classes: int = CLASSES

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 1)."""

        def scaled(channels: int) -> int:
            return round(self.width * channels)

        conv = nn.Conv(scaled(self.first), (3, 3), 2, use_bias=False, name="first")
        images = _Normalised(training)(conv(images))
        for i, (channels, stride) in enumerate(self.layers):
            images = DepthwiseConv(stride, name=f"depthwise{i}")(images)
            images = _Normalised(training)(images)
            pointwise = nn.Conv(
                scaled(channels), (1, 1), use_bias=False, name=f"pointwise{i}"
            )
            images = _Normalised(training)(pointwise(images))
        return nn.Dense(self.classes)(images.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Classification; what a step hands on are the means of batch normalisation.

    Attributes:
      network: from images in [0, 1] to logits.
      dataset: the images.
      steps, batch_size, learning_rate, weight_decay: of the training.
    """

    network: Perceptron | DemoNetwork | PlainNetwork | MobileNet
    dataset: Dataset = dataclasses.field(repr=False)
    steps: int
    batch_size: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        images = len(self.dataset.train_images)
        if images < self.batch_size:
            raise DataError(
                f"there are {images} images, fewer than a batch of {self.batch_size}."
            )

    @property
    def examples(self) -> int:
        """The images of a batch."""
        return self.batch_size

    @property
    def unit(self) -> str:
        """What an example is."""
        return "images"

    @property
    def dataset_checksum(self) -> int:
        """The images and labels in one number."""
        return checksum(*dataclasses.astuple(self.dataset))

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters, and the statistics of batch normalisation, if there are any."""
        images = jnp.zeros((1, *IMAGE_SHAPE, 1))
        variables = self.network.init(key, images, training=True)
        return variables["params"], variables.get("batch_stats", {})

    def batch(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels; every image once in each epoch, in a new order."""
        images = self.dataset.train_images
        epoch, index = divmod(step, len(images) // self.batch_size)
        start = index * self.batch_size
        chosen = _order(len(images), seed, epoch)[start : start + self.batch_size]
        return images[chosen], self.dataset.train_labels[chosen]

    def loss(
        self, params: Any, carried: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The mean cross-entropy in nats, and the new statistics."""
        del key
        images, labels = batch
        logits, updated = self.network.apply(
            {"params": params, "batch_stats": carried},
            _scaled(images),
            training=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated.get("batch_stats", {})

    def evaluate(self, params: Any, carried: Any) -> dict[str, float]:
        """The accuracy on the test images, in per cent."""
        images, labels = self.dataset.test_images, self.dataset.test_labels
        correct = sum(
            int(
                _correct(
                    self.network,
                    {"params": params, "batch_stats": carried},
                    images[start : start + _TEST_BATCH],
                    labels[start : start + _TEST_BATCH],
                )
            )
            for start in range(0, len(labels), _TEST_BATCH)
        )
        return {"accuracy": 100 * correct / len(labels)}


@functools.lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the images in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(images)


@functools.partial(jax.jit, static_argnums=0)
def _correct(
    network: nn.Module, variables: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """The number of images classified correctly, int32."""
    logits = network.apply(variables, _scaled(images), training=False)
    return jnp.sum(logits.argmax(-1) == labels)


def _scaled(images: jax.Array) -> jax.Array:
    """From uint8 to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255
