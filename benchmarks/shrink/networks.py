"""The networks that are cut, from a small CNN to BERT-base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.paper.images import MobileNet
from gradprune_jax.demo.models import LinenNetwork

# Channels at width 1 and stride of the separable convolutions of MobileNet v1.
_MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)


class ResNet(nn.Module):
    """A residual network (He et al., 2016), its shortcuts projected by convolutions.

    Attributes:
      widths: the channels of each stage inside its blocks.
      blocks: the number of blocks in each stage.
      bottleneck: whether a block is 1x1, 3x3, 1x1 with four times the channels, as for
        ImageNet, behind a 7x7 convolution and a pool; else two 3x3, as for CIFAR.
      classes: of the classifier.
      stride: of the first convolution of a network for CIFAR.
    """

    widths: Sequence[int]
    blocks: Sequence[int]
    bottleneck: bool = False
    classes: int = 10
    stride: int = 1

    @nn.compact
    def __call__(self, images: jax.Array, *, training: bool = False) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, channels)."""
        conv = functools.partial(nn.Conv, use_bias=False)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not training, momentum=0.9
        )
        if self.bottleneck:
            x = nn.relu(norm()(conv(self.widths[0], (7, 7), 2)(images)))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        else:
            x = nn.relu(norm()(conv(self.widths[0], (3, 3), self.stride)(images)))
        for stage, (width, blocks) in enumerate(
            zip(self.widths, self.blocks, strict=True)
        ):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                if self.bottleneck:
                    y = nn.relu(norm()(conv(width, (1, 1))(x)))
                    y = nn.relu(norm()(conv(width, (3, 3), stride)(y)))
                    y = norm()(conv(4 * width, (1, 1))(y))
                else:
                    y = nn.relu(norm()(conv(width, (3, 3), stride)(x)))
                    y = norm()(conv(width, (3, 3))(y))
                if x.shape != y.shape:
                    x = norm()(conv(y.shape[-1], (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class Encoder(nn.Module):
    """A transformer encoder with a classifier on its first token (BERT-base).

    Attributes:
      layers, width, heads, feed_forward, vocabulary, classes: its sizes.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    feed_forward: int = 3_072
    vocabulary: int = 30_522
    classes: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, classes) of int32 tokens (batch, time)."""
        positions = jnp.arange(tokens.shape[1])
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = nn.LayerNorm()(x + nn.Embed(512, self.width)(positions))
        for _ in range(self.layers):
            x = nn.LayerNorm()(x + nn.MultiHeadDotProductAttention(self.heads)(x))
            y = nn.Dense(self.width)(nn.gelu(nn.Dense(self.feed_forward)(x)))
            x = nn.LayerNorm()(x + y)
        return nn.Dense(self.classes)(x[:, 0])


class LanguageModel(nn.Module):
    """An LSTM language model (Zaremba et al., 2014, the medium one).

    Attributes:
      vocabulary, width, layers: its sizes.
    """

    vocabulary: int = 10_000
    width: int = 650
    layers: int = 2

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, time, vocabulary) of int32 tokens (batch, time)."""
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        for _ in range(self.layers):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width))(x)
        return nn.Dense(self.vocabulary)(x)


class Case(NamedTuple):
    """A network as a function, with its parameters.

    Attributes:
      fn: of parameters and a batch.
      params: random ones.
      batch: makes a batch of a size.
    """

    fn: Callable[[Any, jax.Array], Any]
    params: Any
    batch: Callable[[int], jax.Array]


resnet20 = functools.partial(ResNet, widths=(16, 32, 64), blocks=(3, 3, 3))
resnet50 = functools.partial(
    ResNet,
    widths=(64, 128, 256, 512),
    blocks=(3, 4, 6, 3),
    bottleneck=True,
    classes=1000,
)


def case(name: str) -> Case:
    """Make one of the networks of `NETWORKS`."""
    model, shape, largest = NETWORKS[name]
    made = model()

    def batch(size: int) -> jax.Array:
        key = jax.random.key(size)
        if largest:
            return jax.random.randint(key, (size, *shape), 0, largest)
        return jax.random.normal(key, (size, *shape))

    options = {"training": False} if isinstance(made, MobileNet) else {}
    variables = made.init(jax.random.key(0), batch(1), **options)
    rest = {kind: own for kind, own in variables.items() if kind != "params"}

    def fn(params: Any, inputs: jax.Array) -> Any:
        return made.apply({"params": params, **rest}, inputs, **options)

    return Case(fn, variables["params"], batch)


# The network, the shape of an input, and the number of tokens if it reads text.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "the demo's CNN": (LinenNetwork, (28, 28, 1), 0),
    "ResNet-20": (resnet20, (32, 32, 3), 0),
    "ResNet-50": (resnet50, (224, 224, 3), 0),
    "MobileNet v1": (
        functools.partial(MobileNet, 32, _MOBILENET, classes=1000),
        (224, 224, 3),
        0,
    ),
    "BERT-base": (Encoder, (128,), 30_522),
    "an LSTM language model": (LanguageModel, (35,), 10_000),
}
