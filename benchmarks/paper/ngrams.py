"""The interpolated trigram model that a neural language model should beat."""

from __future__ import annotations

import numpy as np

_ITERATIONS = 30


def perplexity(
    train: np.ndarray, held_out: np.ndarray, test: np.ndarray, words: int
) -> float:
    """Perplexity of a trigram model interpolated with shorter contexts.

    `p(w | u, v) = l3 c(u,v,w)/c(u,v) + l2 c(v,w)/c(v) + l1 c(w)/n + l0/words`, with
    weights l for each range of c(u, v), fitted by expectation maximisation on the text
    held out (Jelinek & Mercer, 1980).

    Args:
      train: word ids to count, of shape (n,).
      held_out: word ids to fit the weights on.
      test: word ids to predict.
      words: the size of the vocabulary.

    Returns:
      The perplexity on `test`, from its third word on.
    """
    counts = _Counts(train, words)
    held, held_bucket = counts.probabilities(held_out)
    tested, tested_bucket = counts.probabilities(test)
    weights = np.full((max(held_bucket.max(), tested_bucket.max()) + 1, 4), 0.25)
    for bucket in np.unique(held_bucket):
        rows = held[held_bucket == bucket]
        for _ in range(_ITERATIONS):
            shares = rows * weights[bucket]
            shares /= shares.sum(1, keepdims=True)
            weights[bucket] = shares.mean(0)
    likelihood = (tested * weights[tested_bucket]).sum(1)
    return float(np.exp(-np.log(likelihood).mean()))


class _Counts:
    """The n-grams of a text."""

    def __init__(self, train: np.ndarray, words: int) -> None:
        self._words = words
        train = train.astype(np.int64)
        self._ones = np.bincount(train, minlength=words)
        self._twos = np.unique(self._pairs(train), return_counts=True)
        self._threes = np.unique(self._triples(train), return_counts=True)

    def probabilities(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The four estimates for each word of a text from its third, and its bucket."""
        text = text.astype(np.int64)
        word, previous = text[2:], text[1:-1]
        context = self._count(self._twos, self._pairs(text)[:-1])
        estimates = (
            self._count(self._threes, self._triples(text)) / np.maximum(context, 1),
            self._count(self._twos, self._pairs(text)[1:])
            / np.maximum(self._ones[previous], 1),
            self._ones[word] / self._ones.sum(),
            np.full(len(word), 1 / self._words),
        )
        bucket = np.ceil(np.log2(context + 1)).astype(int)
        return np.stack(estimates, 1), bucket

    def _pairs(self, text: np.ndarray) -> np.ndarray:
        return text[:-1] * self._words + text[1:]

    def _triples(self, text: np.ndarray) -> np.ndarray:
        return self._pairs(text)[:-1] * self._words + text[2:]

    def _count(
        self, counted: tuple[np.ndarray, np.ndarray], keys: np.ndarray
    ) -> np.ndarray:
        """How often each n-gram was seen."""
        seen, counts = counted
        at = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
        return np.where(seen[at] == keys, counts[at], 0)
