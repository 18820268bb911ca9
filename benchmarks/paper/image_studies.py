"""The studies on images: plain convolutions, and MobileNet."""

from __future__ import annotations

import dataclasses
import pathlib

import gradprune_jax as gp
from benchmarks.paper.images import ImageTask, Layers, MobileNet, PlainNetwork
from benchmarks.paper.task import Configuration, Metric, ScaleName, Study, sparse
from gradprune_jax.demo import data

ACCURACY = Metric("accuracy", "test accuracy", "%", lower_is_better=False)


def cnn(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """Plain convolutions over sparsities: the counterpart of the InceptionV3 table."""
    task, seeds = plain_task(scale, folder)
    sparsities = (0.9,) if scale == "quick" else (0.5, 0.75, 0.875, 0.95)
    return Study(
        name="cnn",
        title="Plain CNN",
        metric=ACCURACY,
        reference="dense",
        configurations=(
            Configuration("dense", task),
            *sparse("", task, sparsities),
        ),
        seeds=seeds,
        source=source(task.dataset),
        checksum=task.dataset_checksum,
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
    images = _images(scale, folder)

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
            *sparse("width 1.0, ", task(1.0), chosen.sparsities, dense_layers),
        ),
        seeds=chosen.seeds,
        source=source(images),
        checksum=task(1.0).dataset_checksum,
    )


def plain_task(scale: ScaleName, folder: pathlib.Path | None) -> tuple[ImageTask, int]:
    """The plain CNN's task, and the number of seeds."""
    layers: Layers
    layers, steps, batch_size, seeds = {
        "quick": (((4, 2), (8, 2)), 12, 16, 1),
        "laptop": (
            ((32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)),
            *(1_875, 64, 3),
        ),
        # 20 million parameters: the InceptionV3 of the paper has 27 million.
        "paper": (
            (
                *((64, 1), (64, 1), (128, 2), *((128, 1),) * 3, (256, 2)),
                *(*((256, 1),) * 3, (512, 2), *((512, 1),) * 7),
            ),
            *(60_000, 128, 3),
        ),
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
