"""The studies at three scales: to try, for a laptop, and at the paper's sizes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import gradprune_jax as gp
from benchmarks.paper import corpora, ngrams, pairs
from benchmarks.paper.images import ImageTask, Layers, MobileNet, PlainNetwork
from benchmarks.paper.language import LanguageModel, LanguageTask
from benchmarks.paper.sequences import SequenceTask, Translator
from benchmarks.paper.task import Configuration, Metric, Study, Task, window
from gradprune_jax.demo import data

ScaleName = Literal["quick", "laptop", "paper"]

ACCURACY = Metric("accuracy", "test accuracy", "%", lower_is_better=False)
TEST_PERPLEXITY = Metric("test_perplexity", "test perplexity", "", lower_is_better=True)
VALID_PERPLEXITY = Metric(
    "valid_perplexity", "validation perplexity", "", lower_is_better=True
)
PHONE_ERRORS = Metric("phone_errors", "phone errors", "%", lower_is_better=True)
WORD_ERRORS = Metric("word_errors", "word errors", "%", lower_is_better=True)
BLEU = Metric("bleu", "BLEU", "", lower_is_better=False)


def cnn(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """Plain convolutions over sparsities: the counterpart of the InceptionV3 table."""
    task, seeds, source = _plain(scale, folder)
    sparsities = (0.9,) if scale == "quick" else (0.5, 0.75, 0.875, 0.95)
    return Study(
        name="cnn",
        title="Plain CNN",
        metric=ACCURACY,
        reference="dense",
        configurations=(
            Configuration("dense", task),
            *_sparse("", task, sparsities),
        ),
        seeds=seeds,
        source=source,
    )


def mobilenet(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """Widths of a MobileNet against sparsities of the widest."""

    @dataclasses.dataclass(frozen=True)
    class Scale:
        first: int
        layers: Layers
        steps: int
        batch_size: int
        widths: tuple[float, ...]
        sparsities: tuple[float, ...]
        seeds: int

    widths, sparsities = (1.0, 0.75, 0.5, 0.25), (0.5, 0.75, 0.9, 0.95)
    small: Layers = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
    # Table 1 of Howard et al. (2017), with the strides that 28x28 pixels allow.
    whole: Layers = (
        *((64, 1), (128, 1), (128, 1), (256, 2), (256, 1)),
        *((512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)),
    )
    chosen = {
        "quick": Scale(4, ((8, 1), (8, 2)), 12, 16, (1.0, 0.5), (0.75,), 1),
        "laptop": Scale(32, small, 1_875, 64, widths, sparsities, 3),
        "paper": Scale(32, whole, 60_000, 128, widths, sparsities, 3),
    }[scale]
    images, source = _images(scale, folder)

    def task(width: float) -> ImageTask:
        network = MobileNet(chosen.first, chosen.layers, width)
        return ImageTask(network, images, chosen.steps, chosen.batch_size)

    # 1.1 % of MobileNet's parameters, left dense in the paper.
    dense_layers = gp.Rule(None, where="(first|depthwise[0-9]+)/kernel")
    return Study(
        name="mobilenet",
        title="MobileNet",
        metric=ACCURACY,
        reference="width 1.0",
        configurations=(
            *(Configuration(f"width {width}", task(width)) for width in chosen.widths),
            *_sparse("width 1.0, ", task(1.0), chosen.sparsities, dense_layers),
        ),
        seeds=chosen.seeds,
        source=source,
    )


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

    sparsities = (0.8, 0.85, 0.9, 0.95, 0.975)
    chosen = {
        "quick": Scale(
            50, (("large", 16, 0.1), ("small", 8, 0.0)), 12, 4, 5, (0.8,), 1
        ),
        "laptop": Scale(
            10_000,
            (("large", 200, 0.0), ("medium", 80, 0.0), ("small", 32, 0.0)),
            *(2_550, 20, 35, sparsities, 2),
        ),
        # Zaremba et al. (2014): 4.6, 19.8 and 66 million parameters.
        "paper": Scale(
            10_000,
            (("large", 1_500, 0.65), ("medium", 650, 0.5), ("small", 200, 0.0)),
            *(52_000, 20, 35, sparsities, 2),
        ),
    }[scale]
    text = corpora.load(folder, chosen.words)
    if scale == "quick":
        text = text.limit(2_000)

    def task(units: int, dropout: float) -> LanguageTask:
        network = LanguageModel(len(text.vocabulary), units, dropout=dropout)
        return LanguageTask(network, text, chosen.steps, chosen.streams, chosen.unroll)

    (_, *largest), *_ = chosen.units
    words = len(text.vocabulary)
    trigram = {
        part: ngrams.perplexity(text.train, text.valid, tested, words)
        for part, tested in (("validation", text.valid), ("test", text.test))
    }
    return Study(
        name="lstm",
        title="LSTM language model",
        metric=TEST_PERPLEXITY,
        others=(VALID_PERPLEXITY,),
        reference="large",
        configurations=(
            *(Configuration(name, task(*size)) for name, *size in chosen.units),
            *_sparse("large, ", task(*largest), chosen.sparsities),
        ),
        seeds=chosen.seeds,
        source=f"{text.name}, {len(text.train):,} words for training, "
        f"{len(text.test):,} for testing, a vocabulary of {words:,}",
        notes=(
            "An interpolated trigram of the same words has a perplexity of "
            f"{trigram['test']:.1f} on the test part and {trigram['validation']:.1f} "
            "on the validation part, which its weights are fitted on.",
        ),
    )


def seq2seq(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """English spelling to phones."""
    data = pairs.pronunciations(folder)
    return _sequences(scale, data, is_translation=False)


def translation(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """English verses to Spanish."""
    data = pairs.verses(folder, 200 if scale == "quick" else 8_000)
    return _sequences(scale, data, is_translation=True)


def _sequences(scale: ScaleName, data: pairs.Pairs, *, is_translation: bool) -> Study:
    """Widths of an encoder and decoder against sparsities of the widest."""

    @dataclasses.dataclass(frozen=True)
    class Scale:
        units: tuple[int, ...]
        encoder_layers: int
        steps: int
        batch_size: int
        sparsities: tuple[float, ...]
        seeds: int

    sparsities = (0.8, 0.85, 0.9)
    chosen = {
        "quick": Scale((12, 8), 1, 12, 8, (0.8,), 1),
        "laptop": Scale((128, 64, 48, 32), 1, 1_750, 256, sparsities, 2),
        # GNMT has 1,024 units; its 211 million parameters need its vocabulary too.
        "paper": Scale((1_024, 512, 256, 128), 4, 30_000, 128, sparsities, 2),
    }[scale]
    if scale == "quick":
        data = data.limit(300)
    longest = max(data.train.sources.shape[1], data.train.targets.shape[1])
    widths = (12, 16, longest) if is_translation else (8, 11, 15, longest)
    if scale == "quick":
        widths = (longest,)  # one width is one compilation

    def task(units: int) -> SequenceTask:
        network = Translator(
            len(data.source_symbols),
            len(data.target_symbols),
            units,
            chosen.encoder_layers,
        )
        return SequenceTask(
            network, data, is_translation, widths, chosen.steps, chosen.batch_size
        )

    largest = chosen.units[0]
    return Study(
        name="translation" if is_translation else "seq2seq",
        title="Translation" if is_translation else "Spelling to phones",
        metric=BLEU if is_translation else PHONE_ERRORS,
        others=() if is_translation else (WORD_ERRORS,),
        reference=f"{largest} units",
        configurations=(
            *(Configuration(f"{units} units", task(units)) for units in chosen.units),
            *_sparse(f"{largest} units, ", task(largest), chosen.sparsities),
        ),
        seeds=chosen.seeds,
        source=f"{data.name}, {len(data.train.references):,} pairs for training, "
        f"{len(data.test.references):,} for testing",
    )


def ablations(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """What of the method matters, on the plain CNN at 95 %."""
    task, seeds, source = _plain(scale, folder)
    sparsity = 0.9 if scale == "quick" else 0.95
    steps = task.steps
    # Long enough for mask updates a thousand steps apart: the first and the last.
    begin, end, every = 400, 1_400, 100
    if scale == "quick":
        begin, end, every = 3, 9, 2

    def one(name: str, schedule: gp.SparsitySchedule, **fields: str) -> Configuration:
        return Configuration(name, task, (gp.Rule(schedule, **fields),))

    def cubic(every: int, begin: int = begin, end: int = end) -> gp.SparsitySchedule:
        return gp.polynomial_schedule(sparsity, begin, end, every)

    middle = cubic(every)
    late = steps - 1 - (end - begin)
    configurations = [
        one("as in the paper", middle),
        one("one-shot, when the window begins", gp.one_shot_schedule(sparsity, begin)),
        one("one-shot, when the window ends", gp.one_shot_schedule(sparsity, end)),
        one("linear", gp.polynomial_schedule(sparsity, begin, end, every, power=1)),
        one("a mask update every 10 steps", cubic(10)),
        one("a mask update every 1,000 steps", cubic(1_000)),
        one("window from the first step", cubic(every, 0, end - begin)),
        one("window to the last step", cubic(every, late, steps - 1)),
        one("global allocation", middle, allocation="global"),
        one("ERK allocation", middle, allocation="erk"),
    ]
    if scale == "quick":
        configurations = configurations[:2]
    return Study(
        name="ablations",
        title="Ablations",
        metric=ACCURACY,
        reference="as in the paper",
        configurations=tuple(configurations),
        seeds=seeds,
        source=source,
        notes=(
            f"Plain CNN at a sparsity of {100 * sparsity:g} %; as in the paper is a "
            f"cubic schedule from step {begin:,} to {end:,} of {steps:,}, a mask "
            f"update every {every:,} steps, every layer at the same sparsity.",
        ),
    )


STUDIES: dict[str, Callable[[ScaleName, pathlib.Path | None], Study]] = {
    "cnn": cnn,
    "mobilenet": mobilenet,
    "lstm": lstm,
    "seq2seq": seq2seq,
    "translation": translation,
    "ablations": ablations,
}


def _plain(scale: ScaleName, folder: pathlib.Path | None) -> tuple[ImageTask, int, str]:
    """The plain CNN's task, the number of seeds, and the data in words."""
    layers: Layers
    layers, steps, batch_size, seeds = {
        "quick": (((4, 2), (8, 2)), 12, 16, 1),
        "laptop": (
            ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)),
            *(1_875, 64, 3),
        ),
        "paper": (
            (
                *((64, 1), (64, 1), (128, 2), *((128, 1),) * 3, (256, 2)),
                *(*((256, 1),) * 3, (512, 2), *((512, 1),) * 7),
            ),
            *(60_000, 128, 3),
        ),
    }[scale]
    images, source = _images(scale, folder)
    return ImageTask(PlainNetwork(layers), images, steps, batch_size), seeds, source


def _images(scale: ScaleName, folder: pathlib.Path | None) -> tuple[data.Dataset, str]:
    """Fashion-MNIST, and what it is called."""
    images = data.load(folder)
    if scale == "quick":
        images = images.limit(400)
    return images, (
        f"Fashion-MNIST, {len(images.train_images):,} images for training, "
        f"{len(images.test_images):,} for testing"
    )


def _sparse(
    prefix: str, task: Task, sparsities: Sequence[float], *first: gp.Rule
) -> Iterable[Configuration]:
    """The task with all weights pruned that the first rules leave."""
    return [
        Configuration(
            f"{prefix}{100 * sparsity:g} %",
            task,
            (*first, gp.Rule(window(sparsity, task.steps))),
        )
        for sparsity in sparsities
    ]
