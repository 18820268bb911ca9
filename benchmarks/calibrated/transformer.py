"""A decoder-only transformer that predicts the next word."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.paper.corpora import Corpus
from gradprune_jax.demo.data import DataError

_TEST_BATCH = 16


class Block(nn.Module):
    """Attention and a perceptron, each behind a norm and added to its input.

    Attributes:
      width: of the trunk; the perceptron is four times as wide.
      heads: of the attention.
      dropout: the fraction of what is added that is dropped.
    """

    width: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        """The block of (batch, length, width)."""
        drop = nn.Dropout(self.dropout, deterministic=not training)
        mask = nn.make_causal_mask(x[..., 0])
        attention = nn.MultiHeadDotProductAttention(self.heads, name="attention")
        x = x + drop(attention(nn.LayerNorm(name="norm1")(x), mask=mask))
        hidden = nn.Dense(4 * self.width, name="up")(nn.LayerNorm(name="norm2")(x))
        return x + drop(nn.Dense(self.width, name="down")(nn.gelu(hidden)))


class Decoder(nn.Module):
    """Words and positions, blocks, and a softmax over the vocabulary.

    Attributes:
      words: the size of the vocabulary.
      length: the longest text that it reads at once.
      width: of the trunk.
      layers: the number of blocks.
      heads: of each attention.
      dropout: as of `Block`.
    """

    words: int
    length: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(self, words: jax.Array, *, training: bool = False) -> jax.Array:
        """Logits of the words after each word, int32 (batch, length)."""
        positions = nn.Embed(self.length, self.width, name="positions")
        x = nn.Embed(self.words, self.width, name="embed")(words)
        x = x + positions(jnp.arange(words.shape[1]))
        x = nn.Dropout(self.dropout, deterministic=not training)(x)
        for layer in range(self.layers):
            block = Block(self.width, self.heads, self.dropout, name=f"block{layer}")
            x = block(x, training=training)
        return nn.Dense(self.words, name="softmax")(nn.LayerNorm(name="norm")(x))


@dataclasses.dataclass(frozen=True)
class DecoderTask:
    """The next word in pieces of a text.

    Attributes:
      network: the transformer.
      corpus: the text.
      steps, learning_rate, weight_decay: of the training.
      sequences: the batch size.
    """

    network: Decoder
    corpus: Corpus = dataclasses.field(repr=False)
    steps: int
    sequences: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        words, fewest = len(self.corpus.train), self.network.length + 2
        if min(words, len(self.corpus.test), len(self.corpus.valid)) < fewest:
            raise DataError(
                f"{self.corpus.name} has a part of fewer than {fewest} words, the "
                "length that the network reads; give more text."
            )

    @property
    def examples(self) -> int:
        """The words of a batch."""
        return self.sequences * self.network.length

    @property
    def unit(self) -> str:
        """What an example is."""
        return "words"

    def init(self, key: jax.Array) -> tuple[Any, tuple[()]]:
        """Parameters; a step hands nothing to the next one."""
        words = jnp.zeros((1, self.network.length), jnp.int32)
        return self.network.init(key, words)["params"], ()

    def batch(self, seed: int, step: int) -> np.ndarray:
        """Pieces of the text from anywhere, int32 (sequences, length + 1)."""
        return self.pieces(np.random.default_rng((seed, step)), self.sequences)

    def pieces(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """So many pieces of the training text, int32 (number, length + 1)."""
        text, length = self.corpus.train, self.network.length
        starts = rng.integers(len(text) - length, size=number)
        return text[starts[:, None] + np.arange(length + 1)]

    def loss(
        self, params: Any, carried: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The mean cross-entropy in nats a word."""
        logits = self.network.apply(
            {"params": params}, batch[:, :-1], training=True, rngs={"dropout": key}
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return losses.mean(), carried

    def evaluate(self, params: Any, carried: Any = None) -> dict[str, float]:
        """Perplexities of the validation and the test part, in pieces from its start.

        Each word is predicted from those before it in its piece; what is left over at
        the end is not read.
        """
        del carried
        parts = {"valid": self.corpus.valid, "test": self.corpus.test}
        return {
            f"{name}_perplexity": self._perplexity(params, text)
            for name, text in parts.items()
        }

    def _perplexity(self, params: Any, text: np.ndarray) -> float:
        length = self.network.length
        pieces = (len(text) - 1) // length
        places = np.arange(pieces)[:, None] * length + np.arange(length + 1)
        losses = [
            _total_loss(self.network, params, text[places[first : first + _TEST_BATCH]])
            for first in range(0, pieces, _TEST_BATCH)
        ]
        return float(np.exp(sum(map(float, losses)) / (pieces * length)))


@functools.partial(jax.jit, static_argnums=0)
def _total_loss(network: Decoder, params: Any, words: jax.Array) -> jax.Array:
    """The summed loss in nats of pieces, int32 (pieces, length + 1)."""
    logits = network.apply({"params": params}, words[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, words[:, 1:])
    return losses.sum()
