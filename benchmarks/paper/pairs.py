"""Pairs of sequences: words with their pronunciations, verses in two languages.

The bundled CMU Pronouncing Dictionary has English words and their phones (its licence
lies beside it). English and Spanish verses are read from a folder.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gzip
import pathlib
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from gradprune_jax.demo.data import DataError

BUNDLED = pathlib.Path(__file__).parent / "data" / "cmudict"
PAD, BEGIN, END, UNKNOWN = range(4)

_SPECIAL = ("<pad>", "<begin>", "<end>", "<unk>")
_SPELLED = re.compile(r"[a-z']+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_HELD_OUT = 20  # every twentieth pair is held out for testing, another for validation
_LONGEST_VERSE = 20  # words


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Pairs of sequences, one a row, each ended and padded.

    Attributes:
      sources: int32 of shape (n, longest source).
      targets: int32 of shape (n, longest target).
      references: the targets as they were written.
    """

    sources: np.ndarray
    targets: np.ndarray
    references: tuple[tuple[str, ...], ...]

    def limit(self, pairs: int) -> Part:
        """The first pairs."""
        return Part(self.sources[:pairs], self.targets[:pairs], self.references[:pairs])


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Sequences to be turned into others.

    Attributes:
      name: of the data.
      source_symbols: what sources are made of.
      target_symbols: what targets are made of.
      train, valid, test: the pairs.
    """

    name: str
    source_symbols: tuple[str, ...]
    target_symbols: tuple[str, ...]
    train: Part
    valid: Part
    test: Part

    def limit(self, pairs: int) -> Pairs:
        """The first pairs for training, and a tenth as many for the other parts."""
        few = max(pairs // 10, 1)
        return dataclasses.replace(
            self,
            train=self.train.limit(pairs),
            valid=self.valid.limit(few),
            test=self.test.limit(few),
        )


@functools.cache
def pronunciations(folder: pathlib.Path | None = None) -> Pairs:
    """Words of a-z and ' with their first pronunciation, without stress.

    Args:
      folder: with `cmudict.dict.gz`; None is the bundled one.

    Returns:
      The pairs, in an order drawn once.

    Raises:
      DataError: if the folder has no such file, or what it has is damaged or too
        little.
    """
    lines = _read(folder or BUNDLED, "cmudict.dict.gz")
    pairs = []
    for line in lines:
        word, *phones = line.split("#")[0].split() or [""]
        if _SPELLED.fullmatch(word):  # not "read(2)", a further pronunciation
            pairs.append((tuple(word), tuple(phone.rstrip("012") for phone in phones)))
    order = np.random.default_rng(0).permutation(len(pairs))
    held_out = [position % _HELD_OUT for position in range(len(pairs))]
    return _encode(
        "CMU Pronouncing Dictionary", [pairs[i] for i in order], held_out, None
    )


@functools.cache
def verses(folder: pathlib.Path | None, words: int) -> Pairs:
    """English verses and Spanish ones, of at most twenty words each.

    Args:
      folder: with `web_rv1909.tsv.gz`: reference, English, Spanish.
      words: the size of each vocabulary.

    Returns:
      The pairs; every twentieth chapter is held out for testing, another for
      validation.

    Raises:
      DataError: if the folder has no such file, or what it has is damaged or too
        little.
    """
    if folder is None:
        raise DataError("verses are not bundled; give their folder with --data-dir.")
    pairs, chapters = [], []
    for number, line in enumerate(_read(folder, "web_rv1909.tsv.gz"), start=1):
        columns = line.rstrip("\n").split("\t")
        if len(columns) != 3:
            raise DataError(
                f"{folder / 'web_rv1909.tsv.gz'}: line {number} has {len(columns)} "
                "columns, not reference, English and Spanish; copy it again."
            )
        reference, english, spanish = columns
        pair = tuple(tuple(_TOKEN.findall(text.lower())) for text in (english, spanish))
        if max(map(len, pair)) <= _LONGEST_VERSE:
            pairs.append(pair)
            chapters.append(reference.rpartition(".")[0])
    numbers = {chapter: i for i, chapter in enumerate(dict.fromkeys(chapters))}
    held_out = [numbers[chapter] % _HELD_OUT for chapter in chapters]
    return _encode("World English Bible and Reina-Valera 1909", pairs, held_out, words)


def _read(folder: pathlib.Path, name: str) -> list[str]:
    """The lines of a compressed file."""
    file = folder / name
    if not file.is_file():
        raise DataError(f"{folder}: has no {name}; put it into the folder.")
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return list(lines)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is damaged ({error}); copy it again.") from None


def _encode(
    name: str,
    pairs: Sequence[tuple[tuple[str, ...], ...]],
    held_out: Sequence[int],
    words: int | None,
) -> Pairs:
    """Numbers the symbols of the training part and splits the pairs."""
    parts = [
        [pair for pair, number in zip(pairs, held_out, strict=True) if number in kept]
        for kept in (range(2, _HELD_OUT), (0,), (1,))
    ]
    if not all(parts):
        raise DataError(
            f"{name}: {len(pairs)} pairs are too few to hold out every twentieth; copy "
            "the whole file."
        )
    symbols = [
        (*_SPECIAL, *_frequent((pair[side] for pair in parts[0]), words))
        for side in (0, 1)
    ]
    return Pairs(name, *symbols, *(_part(part, symbols) for part in parts))


def _frequent(sequences: Iterable[tuple[str, ...]], words: int | None) -> list[str]:
    """The most frequent symbols first, ties in alphabetical order."""
    counts = collections.Counter(symbol for each in sequences for symbol in each)
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    return ranked if words is None else ranked[: words - len(_SPECIAL)]


def _part(
    pairs: Sequence[tuple[tuple[str, ...], ...]], symbols: Sequence[tuple[str, ...]]
) -> Part:
    """Ids in rows as long as the longest sequence with its end."""
    arrays = []
    for side in (0, 1):
        ids = {symbol: i for i, symbol in enumerate(symbols[side])}
        longest = max(len(pair[side]) for pair in pairs) + 1
        array = np.full((len(pairs), longest), PAD, np.int32)
        for row, pair in zip(array, pairs, strict=True):
            encoded = [ids.get(symbol, UNKNOWN) for symbol in pair[side]]
            row[: len(encoded) + 1] = [*encoded, END]
        arrays.append(array)
    return Part(*arrays, tuple(pair[1] for pair in pairs))
