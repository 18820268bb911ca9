"""An LSTM encoder and decoder with attention: pronunciations, or translation.

The decoder is arranged as GNMT's (Wu et al., 2016): its first layer asks the attention,
its second one reads the answer. So a whole target is trained on in one pass over time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from rapidfuzz.distance import Levenshtein

from benchmarks.paper.pairs import BEGIN, END, PAD, Pairs
from gradprune_jax.demo.data import DataError

_TEST_BATCH = 500
_HIDDEN = -1e9  # the attention's score of padding


class _Memory(NamedTuple):
    """What is attended to: (batch, time, 2 units), and where it is no padding."""

    encoded: jax.Array
    valid: jax.Array


class Translator(nn.Module):
    """A bidirectional encoder, and a decoder of two layers with attention between them.

    Attributes:
      sources: the number of source symbols.
      targets: the number of target symbols.
      units: of the embeddings and of each layer and direction.
      encoder_layers: the number of bidirectional layers.
    """

    sources: int
    targets: int
    units: int
    encoder_layers: int = 1

    def setup(self) -> None:  # noqa: D102
        self.source_embed = nn.Embed(self.sources, self.units)
        self.target_embed = nn.Embed(self.targets, self.units)
        self.encoders = [
            nn.Bidirectional(self._layer(), self._layer())
            for _ in range(self.encoder_layers)
        ]
        self.asking = self._layer()
        self.query = nn.Dense(2 * self.units, use_bias=False)
        self.reading = self._layer()
        self.softmax = nn.Dense(self.targets)

    def _layer(self) -> nn.RNN:
        return nn.RNN(nn.OptimizedLSTMCell(self.units), return_carry=True)

    def __call__(self, sources: jax.Array, inputs: jax.Array) -> jax.Array:
        """Logits (batch, time, targets) of the symbols after each of `inputs`."""
        _, logits = self.decode(self.encode(sources), self.start(len(sources)), inputs)
        return logits

    def encode(self, sources: jax.Array) -> _Memory:
        """Reads source symbols, int32 (batch, time)."""
        valid = sources != PAD
        hidden = self.source_embed(sources)
        for layer in self.encoders:
            hidden = layer(hidden, seq_lengths=valid.sum(1))
        return _Memory(hidden, valid)

    def start(self, batch: int) -> Any:
        """The decoder's carry before the first symbol."""
        zeros = jnp.zeros((batch, self.units))
        return (zeros, zeros), (zeros, zeros)

    def decode(
        self, memory: _Memory, carry: Any, inputs: jax.Array
    ) -> tuple[Any, jax.Array]:
        """The carry after target symbols (batch, time), and logits of the next ones."""
        asking, reading = carry
        asking, hidden = self.asking(self.target_embed(inputs), initial_carry=asking)
        scores = jnp.einsum("bth,bsh->bts", self.query(hidden), memory.encoded)
        scores = jnp.where(memory.valid[:, None], scores, _HIDDEN)
        answer = jnp.einsum("bts,bsh->bth", nn.softmax(scores), memory.encoded)
        reading, hidden = self.reading(
            jnp.concatenate((hidden, answer), -1), initial_carry=reading
        )
        return (asking, reading), self.softmax(jnp.concatenate((hidden, answer), -1))

    def greedy(self, sources: jax.Array, length: int) -> jax.Array:
        """The most probable next symbol again and again, int32 (batch, length)."""
        memory = self.encode(sources)

        def step(module: Translator, state: Any, _: None) -> tuple[Any, jax.Array]:
            carry, last = state
            carry, logits = module.decode(memory, carry, last[:, None])
            best = logits[:, 0].argmax(-1).astype(jnp.int32)
            return (carry, best), best

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=length,
            out_axes=1,
        )
        begin = jnp.full(len(sources), BEGIN, jnp.int32)
        _, symbols = scan(self, (self.start(len(sources)), begin), None)
        return symbols


@dataclasses.dataclass(frozen=True)
class SequenceTask:
    """A target sequence from a source sequence.

    Attributes:
      network: the encoder and decoder.
      pairs: the data.
      is_translation: measures BLEU in place of error rates.
      widths: batches are cut to the smallest of these lengths that fits them.
      steps, batch_size, learning_rate, weight_decay: of the training.
    """

    network: Translator
    pairs: Pairs = dataclasses.field(repr=False)
    is_translation: bool
    widths: tuple[int, ...]
    steps: int
    batch_size: int
    learning_rate: float = 4e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not _batches(self, 0, 0):
            raise DataError(
                f"{self.pairs.name} has {len(self.lengths)} pairs for training, too "
                f"few for batches of {self.batch_size}."
            )

    @property
    def examples(self) -> int:
        """The pairs of a batch."""
        return self.batch_size

    @property
    def unit(self) -> str:
        """What an example is."""
        return "pairs"

    def init(self, key: jax.Array) -> tuple[Any, tuple[()]]:
        """Parameters; a step hands nothing else to the next one."""
        symbols = jnp.zeros((1, 2), jnp.int32)
        return self.network.init(key, symbols, symbols)["params"], ()

    def batch(self, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and targets of about the same lengths, cut to one of `widths`."""
        part = self.pairs.train
        epoch, index = divmod(step, len(_batches(self, seed, 0)))
        width, rows = _batches(self, seed, epoch)[index]
        return part.sources[rows, :width], part.targets[rows, :width]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The length of each training pair's longer sequence, with its end."""
        part = self.pairs.train
        return np.maximum((part.sources != PAD).sum(1), (part.targets != PAD).sum(1))

    def loss(
        self, params: Any, carried: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The mean cross-entropy in nats a target symbol, the end included."""
        del key
        sources, targets = batch
        inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=BEGIN)
        logits = self.network.apply({"params": params}, sources, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        counts = targets != PAD
        return jnp.sum(jnp.where(counts, losses, 0)) / counts.sum(), carried

    def evaluate(self, params: Any, carried: Any) -> dict[str, float]:
        """Error rates in per cent, or BLEU, of greedy search on the test pairs.

        The search ends at the length of the longest test target.
        """
        del carried
        part = self.pairs.test
        found = []
        for start in range(0, len(part.references), _TEST_BATCH):
            symbols = _greedy(
                self.network,
                part.targets.shape[1],
                params,
                part.sources[start : start + _TEST_BATCH],
            )
            found += [self._written(row) for row in np.asarray(symbols)]
        if self.is_translation:
            return {"bleu": bleu(found, part.references)}
        return error_rates(found, part.references)

    def _written(self, symbols: np.ndarray) -> tuple[str, ...]:
        """The symbols up to the end, as they are written."""
        ends = np.flatnonzero(symbols == END)
        symbols = symbols[: ends[0]] if len(ends) else symbols
        return tuple(self.pairs.target_symbols[i] for i in symbols)


def error_rates(
    found: Sequence[tuple[str, ...]], references: Sequence[tuple[str, ...]]
) -> dict[str, float]:
    """Phone and word error rates in per cent.

    Args:
      found: the phones of each word.
      references: those that are right, at least one in all.

    Returns:
      `phone_errors`: insertions, deletions and substitutions for every 100 phones;
      `word_errors`: words that are not wholly right, for every 100.
    """
    pairs = list(zip(found, references, strict=True))
    edits = sum(Levenshtein.distance(one, other) for one, other in pairs)
    wrong = sum(one != other for one, other in pairs)
    return {
        "phone_errors": 100 * edits / sum(map(len, references)),
        "word_errors": 100 * wrong / len(pairs),
    }


def bleu(
    found: Sequence[tuple[str, ...]], references: Sequence[tuple[str, ...]]
) -> float:
    """BLEU on the corpus's own tokens, in lower case, 0 to 100."""
    return sacrebleu.corpus_bleu(
        [" ".join(words) for words in found],
        [[" ".join(words) for words in references]],
        tokenize="none",
        force=True,
    ).score


@functools.partial(jax.jit, static_argnums=(0, 1))
def _greedy(
    network: Translator, length: int, params: Any, sources: jax.Array
) -> jax.Array:
    """The network's greedy search."""
    return network.apply({"params": params}, sources, length, method="greedy")


@functools.lru_cache(maxsize=2)
def _batches(task: SequenceTask, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """The width and the rows of each batch of an epoch, in random order."""
    generator = np.random.default_rng((seed, epoch))
    bounds = np.searchsorted(task.widths, task.lengths)
    batches = []
    for i, width in enumerate(task.widths):
        rows = generator.permutation(np.flatnonzero(bounds == i))
        usable = len(rows) - len(rows) % task.batch_size
        batches += [
            (width, each) for each in rows[:usable].reshape(-1, task.batch_size)
        ]
    return [batches[i] for i in generator.permutation(len(batches))]
