"""What is trained: one network, made sparse in every way, and narrow dense ones."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import optax

import gradprune_jax as gp
from benchmarks.paper.image_studies import ACCURACY, source
from benchmarks.paper.images import ImageTask, Perceptron
from benchmarks.paper.study import Study
from benchmarks.paper.task import Configuration, dense, described, window
from benchmarks.shrink.networks import ResNet
from gradprune_jax.demo import data

# Weights move in three quarters of a training, as in Evci et al. (2020).
_MOVING = 0.75
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class SparselyTrained(Configuration):
    """A network that is sparse from the first step on.

    Attributes:
      sparsity: of all steps.
      grow: what is grown, as of `with_sparse_training`.
    """

    sparsity: float = 0.0
    grow: str | None = None

    @property
    def curve(self) -> str:
        """How its network became small."""
        return "trained sparse"

    @property
    def settings(self) -> str:
        """All that makes its trainings what they are."""
        return described((self.task, self.sparsity, self.grow))

    def optimizer(self) -> optax.GradientTransformation:
        """The dense optimizer, wrapped by sparse training."""
        return gp.with_sparse_training(
            self.dense_optimizer(),
            self.sparsity,
            grow=self.grow,
            end_step=round(_MOVING * self.task.steps),
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to a sparse network.

    Attributes:
      name: what it is called.
      configure: makes the configuration of a task and a sparsity.
    """

    name: str
    configure: Callable[[str, ImageTask, float], Configuration]


def _pruned(**fields: object) -> Callable[[str, ImageTask, float], Configuration]:
    """Gradual pruning, with the fields of its rule."""

    def configure(name: str, task: ImageTask, sparsity: float) -> Configuration:
        rule = gp.Rule(window(sparsity, task.steps), **fields)
        return Configuration(name, task, (rule,))

    return configure


def _one_shot(name: str, task: ImageTask, sparsity: float) -> Configuration:
    """All at once, in the middle of the window of gradual pruning."""
    schedule = gp.one_shot_schedule(sparsity, task.steps // 2)
    return Configuration(name, task, (gp.Rule(schedule, allocation="erk"),))


def _sparse(grow: str | None) -> Callable[[str, ImageTask, float], Configuration]:
    """Sparse training."""

    def configure(name: str, task: ImageTask, sparsity: float) -> Configuration:
        return SparselyTrained(name, task, sparsity=sparsity, grow=grow)

    return configure


METHODS = (
    Method("gradual, uniform", _pruned()),
    Method("gradual, global", _pruned(allocation="global")),
    Method("gradual, ERK", _pruned(allocation="erk")),
    Method("one-shot", _one_shot),
    Method("saliency", _pruned(allocation="erk", score=gp.Saliency())),
    Method("Fisher", _pruned(allocation="erk", score=gp.Fisher(0.99))),
    Method("movement", _pruned(allocation="erk", score=gp.Movement())),
    Method("RigL", _sparse("gradient")),
    Method("SET", _sparse("random")),
    Method("static", _sparse(None)),
)


def perceptron(folder: pathlib.Path | None, *, quick: bool = False) -> Study:
    """LeNet-300-100 at four sparsities, against dense networks of as few weights."""
    images = data.load(folder)
    images = images.limit(400) if quick else images
    steps = 12 if quick else 15 * len(images.train_images) // _BATCH
    widths = (1.0, 0.05) if quick else (1.0, 0.2, 0.1, 0.05, 0.025)

    def task(width: float) -> ImageTask:
        network = Perceptron((round(300 * width), round(100 * width)))
        return ImageTask(network, images, steps, _BATCH)

    return _study(
        "perceptron",
        "LeNet-300-100",
        task(1.0),
        (0.9,) if quick else (0.8, 0.9, 0.95, 0.98),
        dense({f"width {width:g}": task(width) for width in widths}),
        seeds=1 if quick else 5,
    )


def resnet(folder: pathlib.Path | None, *, quick: bool = False) -> Study:
    """ResNet-20 at 90 %; its first convolution has stride 2."""
    images = data.load(folder)
    images = images.limit(400) if quick else images
    widths = (4, 8, 16) if quick else (16, 32, 64)
    steps = 6 if quick else 2 * len(images.train_images) // _BATCH
    network = ResNet(widths, (1, 1, 1) if quick else (3, 3, 3), stride=2)
    task = ImageTask(network, images, steps, _BATCH)
    reference = [Configuration("dense", task)]
    seeds = 1 if quick else 2
    return _study("resnet", "ResNet-20", task, (0.9,), reference, seeds=seeds)


def _study(
    name: str,
    title: str,
    task: ImageTask,
    sparsities: Sequence[float],
    unpruned: Sequence[Configuration],
    seeds: int,
) -> Study:
    """The dense networks, and the first one made sparse by every method."""
    return Study(
        name=name,
        title=title,
        metric=ACCURACY,
        configurations=(
            *unpruned,
            *(
                method.configure(f"{method.name}, {100 * sparsity:g} %", task, sparsity)
                for method in METHODS
                for sparsity in sparsities
            ),
        ),
        seeds=seeds,
        source=source(task.dataset),
        checksum=task.dataset_checksum,
    )
