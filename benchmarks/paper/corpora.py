"""Text for language models: the State of the Union addresses, or the Penn Treebank.

The bundled file has 233 addresses from 1790 to 2021 (its licence lies beside it). A
folder with `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt` is read in its place.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gzip
import pathlib
import re
import zlib
from collections.abc import Iterable

import numpy as np

from gradprune_jax.demo.data import DataError

BUNDLED = pathlib.Path(__file__).parent / "data" / "sotu"
UNKNOWN, END = "<unk>", "<eos>"

_WORD = re.compile(r"[a-z']+|[0-9]+|[.,;:!?]")
_PARTS = ("train", "valid", "test")
_FEWEST = 3  # words, which make one trigram


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Word ids, the most frequent word first.

    Attributes:
      name: of the text.
      vocabulary: the words.
      train, valid, test: int32 of shape (words,).
    """

    name: str
    vocabulary: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def limit(self, words: int) -> Corpus:
        """The first words for training, and a tenth as many for the other parts."""
        few = max(words // 10, 1)
        return dataclasses.replace(
            self,
            train=self.train[:words],
            valid=self.valid[:few],
            test=self.test[:few],
        )


@functools.cache
def load(folder: pathlib.Path | None, words: int, since: int = 0) -> Corpus:
    """Reads a corpus, all but its most frequent words as `<unk>`.

    Args:
      folder: with `sotu.tsv.gz`, or with `ptb.train.txt` and its like; None is the
        bundled one.
      words: the size of the vocabulary.
      since: the year of the first address to read.

    Returns:
      The word ids of its three parts. Of the addresses every twentieth is held out for
      validation and every twentieth for testing, each ends with `<eos>`; of the
      Treebank every line does.

    Raises:
      DataError: if the folder has neither, or what it has is damaged or too little.
    """
    folder = folder or BUNDLED
    treebank = [folder / f"ptb.{part}.txt" for part in _PARTS]
    addresses = folder / "sotu.tsv.gz"
    if all(file.is_file() for file in treebank):
        name = "Penn Treebank"
        parts = [_lines(file) for file in treebank]
    elif addresses.is_file():
        name = "State of the Union addresses" + (f" since {since}" if since else "")
        parts = _addresses(addresses, since)
    else:
        raise DataError(
            f"{folder}: has neither sotu.tsv.gz nor all of ptb.train.txt, "
            "ptb.valid.txt and ptb.test.txt; put one of the two into the folder."
        )
    for part, found in zip(_PARTS, parts, strict=True):
        if len(found) < _FEWEST:
            raise DataError(
                f"{folder}: has {len(found)} words in the {part} part, fewer than "
                f"{_FEWEST}; copy the whole text."
            )
    counts = collections.Counter(parts[0])
    counts[UNKNOWN] += 1  # so that it has an id where the text has none
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    if UNKNOWN not in frequent:
        frequent[-1] = UNKNOWN
    ids = {word: i for i, word in enumerate(frequent)}
    encoded = (
        np.array([ids.get(word, ids[UNKNOWN]) for word in part], np.int32)
        for part in parts
    )
    return Corpus(name, tuple(frequent), *encoded)


def _lines(file: pathlib.Path) -> list[str]:
    """The words of a part of the Treebank, each line ended."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is damaged ({error}); copy it again.") from None
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def _addresses(file: pathlib.Path, since: int) -> list[list[str]]:
    """The words of the addresses since a year: training, validation, test."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            named = [line.split("\t", 1) for line in lines]
        # A name begins with the year: 1790_george_washington_n.
        dated = [(int(name[:4]) if since else 0, text) for name, text in named]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file}: is damaged ({error}); copy it again.") from None
    held_out = {9: 1, 19: 2}
    parts: list[list[str]] = [[], [], []]
    for i, (year, text) in enumerate(dated):
        if year >= since:
            parts[held_out.get(i % 20, 0)] += _words(text)
    return parts


def _words(text: str) -> Iterable[str]:
    """Words in lower case, numbers and marks, and the end."""
    return [
        *_WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")),
        END,
    ]
