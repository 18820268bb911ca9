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
    class Size:
        units: int
        dropout: float = 0.0
        learning_rate: float = 4e-3
        weight_decay: float = 0.1

    @dataclasses.dataclass(frozen=True)
    class Scale:
        words: int
        sizes: dict[str, Size]  # the largest first
        steps: int
        streams: int
        unroll: int
        sparsities: tuple[float, ...]
        seeds: int
        since: int = 0

    chosen = {
        "quick": Scale(
            50,
            {"large": Size(16, 0.1), "small": Size(8)},
            *(12, 4, 5, (0.8,), 1),
        ),
        # Since 1900 there are 0.9 million words, as many as in the Penn Treebank.
        "laptop": Scale(
            10_000,
            {
                "large": Size(200, 0.2),
                "medium": Size(80),
                "small": Size(32),
                "tiny": Size(11),
            },
            *(12_900, 20, 35, (0.8, 0.85, 0.9, 0.95), 2),
            since=1900,
        ),
        # The three sizes of Zaremba et al. (2014), of 4.6 to 66 million parameters.
        # A weight decays by as much in each, which is the product of rate and decay.
        "paper": Scale(
            10_000,
            {
                "large": Size(1_500, 0.65, 2e-3, 0.2),
                "medium": Size(650, 0.5, 3e-3, 0.13),
                "small": Size(200, 0.3),
                "tiny": Size(128, 0.2),
            },
            *(8_000, 64, 35, (0.9, 0.95), 1),
            since=1900,
        ),
    }[scale]
    text = corpora.load(folder, chosen.words, chosen.since)
    if scale == "quick":
        text = text.limit(2_000)

    def task(size: Size) -> LanguageTask:
        network = LanguageModel(
            len(text.vocabulary),
            size.units,
            dropout=size.dropout,
            mixed_precision=scale != "quick",
        )
        return LanguageTask(
            network,
            text,
            *(chosen.steps, chosen.streams, chosen.unroll),
            *(size.learning_rate, size.weight_decay),
        )

    largest, *_ = chosen.sizes.values()
    words = len(text.vocabulary)
    passes = chosen.steps * chosen.streams * chosen.unroll / len(text.train)
    return Study(
        name="lstm",
        title="LSTM language model",
        metric=TEST_PERPLEXITY,
        others=(VALID_PERPLEXITY,),
        configurations=(
            *dense({name: task(size) for name, size in chosen.sizes.items()}),
            *sparse(task(largest), chosen.sparsities),
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
