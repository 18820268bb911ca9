"""The studies on text: a language model, spelling to phones, and translation."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from benchmarks.paper import corpora, ngrams, pairs
from benchmarks.paper.language import LanguageModel, LanguageTask
from benchmarks.paper.sequences import SequenceTask, Translator
from benchmarks.paper.study import Baseline, Metric, Study
from benchmarks.paper.task import ScaleName, checksum, dense, sparse

TEST_PERPLEXITY = Metric("test_perplexity", "test perplexity", "", lower_is_better=True)
VALID_PERPLEXITY = Metric(
    "valid_perplexity", "validation perplexity", "", lower_is_better=True
)
PHONE_ERRORS = Metric("phone_errors", "phone errors", "%", lower_is_better=True)
WORD_ERRORS = Metric("word_errors", "word errors", "%", lower_is_better=True)
BLEU = Metric("bleu", "BLEU", "", lower_is_better=False)


def lstm(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """A stacked LSTM language model; embedding, LSTMs and softmax are all pruned."""

    @dataclasses.dataclass(frozen=True)
    class Scale:
        words: int
        units: tuple[tuple[str, int, float], ...]  # name, units, dropout; largest first
        steps: int
        streams: int
        unroll: int
        sparsities: tuple[float, ...]
        seeds: int
        since: int = 0
        mixed_precision: bool = False
        weight_decay: float = 0.0

    sparsities = (0.8, 0.85, 0.9, 0.95)
    chosen = {
        "quick": Scale(
            50, (("large", 16, 0.1), ("small", 8, 0.0)), 12, 4, 5, (0.8,), 1
        ),
        # Since 1900 there are 0.9 million words, as many as in the Penn Treebank.
        "laptop": Scale(
            10_000,
            (
                *(("large", 200, 0.2), ("medium", 80, 0.0)),
                *(("small", 32, 0.0), ("tiny", 11, 0.0)),
            ),
            *(12_900, 20, 35, sparsities, 2),
            since=1900,
            mixed_precision=True,
            weight_decay=0.1,
        ),
        # Zaremba et al. (2014): 4.6, 19.8 and 66 million parameters.
        "paper": Scale(
            10_000,
            (("large", 1_500, 0.65), ("medium", 650, 0.5), ("small", 200, 0.0)),
            *(52_000, 20, 35, (*sparsities, 0.975), 2),
        ),
    }[scale]
    text = corpora.load(folder, chosen.words, chosen.since)
    if scale == "quick":
        text = text.limit(2_000)

    def task(units: int, dropout: float) -> LanguageTask:
        network = LanguageModel(
            len(text.vocabulary),
            units,
            dropout=dropout,
            mixed_precision=chosen.mixed_precision,
        )
        return LanguageTask(
            network,
            text,
            chosen.steps,
            chosen.streams,
            chosen.unroll,
            weight_decay=chosen.weight_decay,
        )

    (_, *largest), *_ = chosen.units
    words = len(text.vocabulary)
    passes = chosen.steps * chosen.streams * chosen.unroll / len(text.train)
    return Study(
        name="lstm",
        title="LSTM language model",
        metric=TEST_PERPLEXITY,
        others=(VALID_PERPLEXITY,),
        configurations=(
            *dense({name: task(*size) for name, *size in chosen.units}),
            *sparse(task(*largest), chosen.sparsities),
        ),
        seeds=chosen.seeds,
        source=f"{text.name}, {len(text.train):,} words for training, "
        f"{len(text.test):,} for testing, a vocabulary of {words:,}",
        baseline=Baseline(
            "an interpolated trigram of the same words",
            ngrams.perplexity(text.train, text.valid, text.test, words),
            reason=f"it reads the text {passes:.1f} times, and learns in small steps "
            "what counting learns at once",
        ),
        checksum=checksum(text.train, text.valid, text.test),
    )


@dataclasses.dataclass(frozen=True)
class _SequenceScale:
    """The sizes of a study of encoders and decoders, the widest first."""

    units: tuple[int, ...]
    encoder_layers: int
    steps: int
    batch_size: int
    sparsities: tuple[float, ...] = (0.75, 0.85, 0.9, 0.95)
    seeds: int = 2


_TINY = _SequenceScale((12, 8), 1, 12, 8, (0.8,), seeds=1)
# GNMT has 1,024 units; its 211 million parameters need its vocabulary too.
_GNMT = _SequenceScale((1_024, 512, 256, 128), 4, 30_000, 128)


def seq2seq(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """English spelling to phones."""
    laptop = _SequenceScale((128, 64, 48, 32, 24), 1, 5_250, 256)
    chosen = {"quick": _TINY, "laptop": laptop, "paper": _GNMT}[scale]
    data = pairs.pronunciations(folder)
    if scale == "quick":
        data = data.limit(300)
    return Study(
        name="seq2seq",
        title="Spelling to phones",
        metric=PHONE_ERRORS,
        others=(WORD_ERRORS,),
        **_widths_and_sparsities(chosen, data, (8, 11, 15), is_translation=False),
    )


def translation(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """English verses to Spanish."""
    laptop = _SequenceScale((128, 64, 32, 16), 1, 1_500, 64)
    chosen = {"quick": _TINY, "laptop": laptop, "paper": _GNMT}[scale]
    words = {"quick": 200, "laptop": 4_000, "paper": 32_000}[scale]
    data = pairs.verses(folder, words)
    if scale == "quick":
        data = data.limit(300)
    return Study(
        name="translation",
        title="English to Spanish",
        metric=BLEU,
        **_widths_and_sparsities(chosen, data, (12, 16), is_translation=True),
    )


def _widths_and_sparsities(
    scale: _SequenceScale,
    data: pairs.Pairs,
    lengths: tuple[int, ...],
    *,
    is_translation: bool,
) -> dict[str, Any]:
    """The fields of a study that compares dense widths with the widest one pruned."""
    longest = max(data.train.sources.shape[1], data.train.targets.shape[1])
    # One length is one compilation.
    lengths = (longest,) if scale is _TINY else (*lengths, longest)

    def task(units: int) -> SequenceTask:
        network = Translator(
            len(data.source_symbols),
            len(data.target_symbols),
            units,
            scale.encoder_layers,
        )
        return SequenceTask(
            network, data, is_translation, lengths, scale.steps, scale.batch_size
        )

    return {
        "configurations": (
            *dense({f"{units} units": task(units) for units in scale.units}),
            *sparse(task(scale.units[0]), scale.sparsities),
        ),
        "seeds": scale.seeds,
        "source": f"{data.name}, {len(data.train.references):,} pairs for training, "
        f"{len(data.test.references):,} for testing",
        "checksum": checksum(data.train.sources, data.train.targets, data.test.targets),
    }
