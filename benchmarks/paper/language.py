"""A stacked LSTM that predicts the next word (Zaremba et al., 2014)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.paper import lstm
from benchmarks.paper.corpora import Corpus
from gradprune_jax.demo.data import DataError

_TEST_STREAMS = 20
_PAD = -1

Carry = list[lstm.Carry]  # of each layer


class LanguageModel(nn.Module):
    """Embedding, LSTM layers as wide, and a softmax over the vocabulary.

    Attributes:
      words: the size of the vocabulary.
      units: of the embedding and of every layer.
      layers: the number of LSTM layers.
      dropout: the fraction of what enters and leaves a layer that is dropped.
      mixed_precision: takes the softmax's products, which are most of a step, of
        bfloat16 numbers, and adds them up in float32.
    """

    words: int
    units: int
    layers: int = 2
    dropout: float = 0.0
    mixed_precision: bool = False

    @nn.compact
    def __call__(
        self, carry: Carry, words: jax.Array, *, training: bool
    ) -> tuple[Carry, jax.Array]:
        """The carry after words, int32 (time, streams), and logits of the next ones."""
        drop = nn.Dropout(self.dropout, deterministic=not training)
        hidden = drop(nn.Embed(self.words, self.units, name="embed")(words))
        new: Carry = []
        for i in range(self.layers):
            cell = nn.OptimizedLSTMCell(self.units)
            if self.is_initializing():
                cell(carry[i], hidden[0])  # makes its parameters
            last, hidden = lstm.layer(cell.variables["params"], carry[i], hidden)
            new.append(last)
            hidden = drop(hidden)
        # One product of two matrices: over three axes XLA's is a third slower on CPU.
        product = _mixed_product if self.mixed_precision else None
        softmax = nn.Dense(self.words, dot_general=product, name="softmax")
        logits = softmax(hidden.reshape(-1, self.units))
        return new, logits.reshape(*words.shape, self.words)

    def start(self, streams: int) -> Carry:
        """The carry at the beginning of a text."""
        zeros = jnp.zeros((streams, self.units))
        return [(zeros, zeros) for _ in range(self.layers)]


def _mixed_product(lhs: jax.Array, rhs: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Two matrices' product, called as `nn.Dense` calls `lax.dot_general`.

    `preferred_element_type` alone is not enough: JAX would multiply the float32
    gradient of the result by the bfloat16 operands, which is a product in float32.
    """
    return _product_of_bfloat16(lhs, rhs)


@jax.custom_vjp
def _product_of_bfloat16(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return _contract(lhs, 1, rhs, 0)


def _product_forward(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, Any]:
    return _contract(lhs, 1, rhs, 0), (lhs, rhs)


def _product_backward(operands: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    lhs, rhs = operands
    return _contract(gradient, 1, rhs, 1), _contract(lhs, 0, gradient, 0)


_product_of_bfloat16.defvjp(_product_forward, _product_backward)


def _contract(lhs: jax.Array, axis: int, rhs: jax.Array, other: int) -> jax.Array:
    """The product over one axis of each, of bfloat16 numbers, summed in float32."""
    return jax.lax.dot_general(
        lhs.astype(jnp.bfloat16),
        rhs.astype(jnp.bfloat16),
        (((axis,), (other,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


@dataclasses.dataclass(frozen=True)
class LanguageTask:
    """The next word of a text, cut into streams that are read side by side.

    Attributes:
      network: the language model.
      corpus: the text.
      steps, learning_rate, weight_decay: of the training.
      streams: the batch size.
      unroll: the words of each stream that a step reads, and that its gradient sees.
    """

    network: LanguageModel
    corpus: Corpus = dataclasses.field(repr=False)
    steps: int
    streams: int = 20
    unroll: int = 35
    learning_rate: float = 4e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        words, fewest = len(self.corpus.train), self.streams * (self.unroll + 1)
        if words < fewest:
            raise DataError(
                f"{self.corpus.name} has {words} words for training; {self.streams} "
                f"streams of {self.unroll} words a step need at least {fewest}."
            )

    @property
    def examples(self) -> int:
        """The words of a batch."""
        return self.streams * self.unroll

    @property
    def unit(self) -> str:
        """What an example is."""
        return "words"

    def init(self, key: jax.Array) -> tuple[Any, Carry]:
        """Parameters, and the carry at the beginning of the text."""
        carry = self.network.start(self.streams)
        words = jnp.zeros((1, self.streams), jnp.int32)
        return self.network.init(key, carry, words, training=False)["params"], carry

    def batch(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Words and the next ones, (unroll + 1, streams), and whether a pass begins.

        Each seed and each pass begins the streams at another word of the text.
        """
        text = self.corpus.train
        length = len(text) // self.streams
        windows = (length - 1) // self.unroll
        epoch, index = divmod(step, windows)
        offset = np.random.default_rng((seed, epoch)).integers(len(text))
        starts = offset + np.arange(self.streams) * length + index * self.unroll
        places = (starts + np.arange(self.unroll + 1)[:, None]) % len(text)
        return text[places], np.bool_(index == 0)

    def loss(
        self, params: Any, carried: Carry, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Carry]:
        """The mean cross-entropy in nats a word, and the carry after the batch."""
        words, begins = batch
        carried = jax.tree.map(lambda leaf: jnp.where(begins, 0, leaf), carried)
        carried, logits = self.network.apply(
            {"params": params},
            carried,
            words[:-1],
            training=True,
            rngs={"dropout": key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, words[1:])
        return losses.mean(), carried

    def evaluate(self, params: Any, carried: Any) -> dict[str, float]:
        """Perplexities on the validation and on the test part, from the second word."""
        del carried
        parts = {"valid": self.corpus.valid, "test": self.corpus.test}
        return {
            f"{name}_perplexity": self._perplexity(params, text)
            for name, text in parts.items()
        }

    def _perplexity(self, params: Any, text: np.ndarray) -> float:
        """The exponential of the mean loss in nats; streams begin without a past."""
        streams = min(_TEST_STREAMS, len(text) - 1)
        # Words and next words, in whole windows; what pads them has no loss.
        length = -(-(len(text) - 1) // streams)
        length = -(-length // self.unroll) * self.unroll
        pairs = np.full((streams * length, 2), _PAD, np.int32)
        pairs[: len(text) - 1] = np.stack((text[:-1], text[1:]), 1)
        windows = pairs.reshape(streams, -1, self.unroll, 2).transpose(1, 2, 0, 3)
        return float(
            np.exp(_total_loss(self.network, params, windows) / (len(text) - 1))
        )


@functools.partial(jax.jit, static_argnums=0)
def _total_loss(network: LanguageModel, params: Any, windows: jax.Array) -> jax.Array:
    """The summed loss in nats of windows (n, unroll, streams, 2), read in turn."""

    def read(carry: Carry, window: jax.Array) -> tuple[Carry, jax.Array]:
        words, targets = window[..., 0], window[..., 1]
        carry, logits = network.apply(
            {"params": params}, carry, jnp.maximum(words, 0), training=False
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(targets, 0)
        )
        return carry, jnp.sum(jnp.where(targets == _PAD, 0, losses))

    _, losses = jax.lax.scan(read, network.start(windows.shape[2]), windows)
    return losses.sum()
