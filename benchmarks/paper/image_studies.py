"""The studies on images: dense layers, plain convolutions, and MobileNet."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import gradprune_jax as gp
from benchmarks.paper.images import (
    DemoNetwork,
    ImageTask,
    Layers,
    MobileNet,
    Perceptron,
    PlainNetwork,
)
from benchmarks.paper.study import Metric, Study
from benchmarks.paper.task import ScaleName, dense, sparse
from gradprune_jax.demo import data

# 20 million parameters: the InceptionV3 of the paper has 27 million.
_DEEP: Layers = (
    *((64, 1), (64, 1), (128, 2), *((128, 1),) * 3, (256, 2)),
    *(*((256, 1),) * 3, (512, 2), *((512, 1),) * 7),
)

ACCURACY = Metric("accuracy", "test accuracy", "%", lower_is_better=False)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """The sizes of a study: how long, how wide, how sparse, how often."""

    steps: int
    batch_size: int
    widths: tuple[float, ...]
    sparsities: tuple[float, ...]
    seeds: int


def mlp(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """LeNet-300-100, the network that most papers on pruning begin with."""
    small = _Scale(12, 16, (0.1, 0.05), (0.75,), 1)
    whole = _Scale(
        28_125, 64, (1.0, 0.3, 0.1, 0.05, 0.025), (0.75, 0.8, 0.9, 0.95, 0.98), 3
    )
    chosen = small if scale == "quick" else whole
    images = _images(scale, folder)

    def task(width: float) -> ImageTask:
        network = Perceptron((round(300 * width), round(100 * width)))
        return ImageTask(network, images, chosen.steps, chosen.batch_size)

    return _widths_and_sparsities(
        task,
        chosen.widths,
        chosen.sparsities,
        ("uniform", "erk", "global"),
        name="mlp",
        title="LeNet-300-100",
        seeds=chosen.seeds,
    )


def cnn(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """Plain convolutions: the counterpart of the paper's InceptionV3."""
    widths, sparsities = (1.0, 0.5, 0.35, 0.2), (0.5, 0.75, 0.875, 0.9, 0.95)
    chosen = {
        "quick": _Scale(12, 16, (0.2, 0.1), (0.9,), 1),
        "laptop": _Scale(11_250, 64, widths, sparsities, 3),
        "paper": _Scale(60_000, 128, widths, sparsities, 3),
    }[scale]
    images = _images(scale, folder)

    def task(width: float) -> ImageTask:
        network: PlainNetwork | DemoNetwork = DemoNetwork(width)
        if scale == "paper":
            network = PlainNetwork(
                tuple((round(width * channels), stride) for channels, stride in _DEEP)
            )
        return ImageTask(network, images, chosen.steps, chosen.batch_size)

    return _widths_and_sparsities(
        task,
        chosen.widths,
        chosen.sparsities,
        ("uniform", "erk"),
        name="cnn",
        title="Plain CNN",
        seeds=chosen.seeds,
    )


def mobilenet(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """Widths of a MobileNet against sparsities of the widest."""

    @dataclasses.dataclass(frozen=True)
    class Scale:
        layers: Layers
        steps: int
        batch_size: int
        widths: tuple[float, ...]
        sparsities: tuple[float, ...]
        seeds: int

    # The parts that are never pruned have 3.5 % of these parameters.
    small: Layers = (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
        *((512, 2), (512, 1)),
    )
    # Table 1 of Howard et al. (2017), with the strides that 28x28 pixels allow.
    whole: Layers = (
        *((64, 1), (128, 1), (128, 1), (256, 2), (256, 1)),
        *((512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)),
    )
    widths, sparsities = (1.0, 0.75, 0.5, 0.25), (0.5, 0.75, 0.9, 0.95)
    chosen = {
        "quick": Scale(((64, 1), (64, 2)), 12, 16, (0.1, 0.05), (0.75,), 1),
        "laptop": Scale(small, 11_250, 64, widths, sparsities, 2),
        "paper": Scale(whole, 60_000, 128, widths, sparsities, 3),
    }[scale]
    images = _images(scale, folder)

    def task(width: float) -> ImageTask:
        network = MobileNet(32, chosen.layers, width)
        return ImageTask(network, images, chosen.steps, chosen.batch_size)

    return _widths_and_sparsities(
        task,
        chosen.widths,
        chosen.sparsities,
        ("uniform",),
        # 1.1 % of MobileNet's parameters, left dense in the paper.
        gp.Rule(None, where="(first|depthwise[0-9]+)/kernel"),
        name="mobilenet",
        title="MobileNet",
        seeds=chosen.seeds,
    )


def _widths_and_sparsities(
    task: Callable[[float], ImageTask],
    widths: Sequence[float],
    sparsities: Sequence[float],
    allocations: Sequence[str],
    *first: gp.Rule,
    **fields: Any,
) -> Study:
    """A study that compares dense widths with the widest network pruned."""
    widest = widths[0]
    return Study(
        metric=ACCURACY,
        configurations=(
            *dense({f"width {width:g}": task(width) for width in widths}),
            *(
                configuration
                for allocation in allocations
                for configuration in sparse(
                    task(widest), sparsities, *first, allocation=allocation
                )
            ),
        ),
        source=source(task(widest).dataset),
        checksum=task(widest).dataset_checksum,
        **fields,
    )


def plain_task(scale: ScaleName, folder: pathlib.Path | None) -> tuple[ImageTask, int]:
    """A small plain CNN's task for the ablations, and the number of seeds."""
    layers: Layers
    layers, steps, batch_size, seeds = {
        "quick": (((4, 2), (8, 2)), 12, 16, 1),
        "laptop": (
            ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)),
            *(1_875, 64, 3),
        ),
        "paper": (_DEEP, 60_000, 128, 3),
    }[scale]
    images = _images(scale, folder)
    return ImageTask(PlainNetwork(layers), images, steps, batch_size), seeds


def source(images: data.Dataset) -> str:
    """What the images are, in words."""
    return (
        f"Fashion-MNIST, {len(images.train_images):,} images for training, "
        f"{len(images.test_images):,} for testing"
    )


def _images(scale: ScaleName, folder: pathlib.Path | None) -> data.Dataset:
    """Fashion-MNIST, the whole of it or what is bundled."""
    images = data.load(folder)
    return images.limit(400) if scale == "quick" else images
