"""The training loop: the same batches for the dense and the pruned network."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradprune_jax as gp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradprune_jax.demo.data import Dataset
    from gradprune_jax.demo.learners import Learner

_BATCH_SIZE = 64
_LEARNING_RATE = 4e-3
_WEIGHT_DECAY = 0.1
_MASK_UPDATES = 40
_EVALUATIONS = 20
_EVALUATION_BATCH = 500
_REPORT_EVERY = 10  # reading a loss waits for the device: not at every step

_metrics = jax.jit(gp.metrics)


class Progress(NamedTuple):
    """How far a training is, and how well it goes.

    Attributes:
      step: the number of updates done.
      loss: the mean loss of the last batches.
      accuracy: of the last evaluation on the test images.
      sparsity: of the masks together; None if nothing is pruned.
    """

    step: int
    loss: float
    accuracy: float
    sparsity: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
      params: the trained parameters.
      opt_state: the optimizer's state, with the masks if it prunes.
      losses: the loss of each step, float32 (steps,).
      sparsities: the masks' sparsity after each step, float32; empty if dense.
      evaluated_at: the numbers of updates after which it was evaluated.
      correct: the test images classified correctly at each evaluation.
      test_images: the number of test images.
      seconds: the time that it took, compilation and evaluations included.
    """

    params: Any
    opt_state: Any
    losses: np.ndarray
    sparsities: np.ndarray
    evaluated_at: tuple[int, ...]
    correct: tuple[int, ...]
    test_images: int
    seconds: float

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The fraction of test images classified correctly, at each evaluation."""
        return tuple(correct / self.test_images for correct in self.correct)


@dataclasses.dataclass(frozen=True)
class Training:
    """What both trainings share: the data, its order, and the number of steps.

    Attributes:
      dataset: the images.
      source: what to call them.
      epochs: how often each image is used, at least 1.
      seed: of the initialisation and of the order of images.
    """

    dataset: Dataset
    source: str
    epochs: int
    seed: int

    @property
    def batch_size(self) -> int:
        """The number of images in a step."""
        return min(_BATCH_SIZE, len(self.dataset.train_images))

    @property
    def steps(self) -> int:
        """The number of optimizer updates; an incomplete batch is left out."""
        return self.epochs * (len(self.dataset.train_images) // self.batch_size)

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the indices of each batch's images, shuffled anew in each epoch."""
        generator = np.random.default_rng(self.seed)
        images = len(self.dataset.train_images)
        for _ in range(self.epochs):
            order = generator.permutation(images)
            usable = images - images % self.batch_size
            yield from order[:usable].reshape(-1, self.batch_size)

    def schedule(self, sparsity: float) -> gp.SparsitySchedule:
        """Make a schedule that prunes in the middle half of training, in some 40 steps.

        It starts when the network has learned something worth ranking, and ends while
        the learning rate still lets the remaining weights recover.
        """
        begin, end = self.steps // 4, 3 * self.steps // 4
        return gp.polynomial_schedule(
            final_sparsity=sparsity,
            begin_step=begin,
            end_step=end,
            every=max(1, (end - begin) // _MASK_UPDATES),
        )

    def optimizer(self) -> optax.GradientTransformation:
        """Make the optimizer of the dense network: AdamW under a cosine decay."""
        learning_rate = optax.cosine_decay_schedule(_LEARNING_RATE, self.steps)
        return optax.adamw(learning_rate, weight_decay=_WEIGHT_DECAY)

    def pruning_optimizer(self, rule: gp.Rule) -> optax.GradientTransformation:
        """Make the optimizer of the pruned network: the same one with one more link."""
        return optax.chain(self.optimizer(), gp.gradual_prune(rule))


def train(
    training: Training,
    learner: Learner,
    *,
    prunes: bool,
    report: Callable[[Progress], None],
) -> Run:
    """Train a learner, and record how it went.

    Args:
      training: the data, its order, and the number of steps.
      learner: the network with its optimizer; it is changed.
      prunes: whether the optimizer has masks to read the sparsity from.
      report: called every few steps with the progress.

    Returns:
      The curves and the trained parameters.
    """
    data = training.dataset
    started = time.monotonic()
    evaluate_at = {
        round(training.steps * number / _EVALUATIONS)
        for number in range(_EVALUATIONS + 1)
    }
    evaluated_at: list[int] = [0]
    correct: list[int] = [_evaluate(learner, data)]
    losses: list[jax.Array] = []
    sparsities: list[jax.Array] = []
    for step, batch in enumerate(training.batches(), start=1):
        images = jnp.asarray(data.train_images[batch])
        losses.append(learner.step(images, jnp.asarray(data.train_labels[batch])))
        if prunes:
            sparsities.append(_metrics(learner.opt_state)["sparsity/total"])
        if step in evaluate_at:
            evaluated_at.append(step)
            correct.append(_evaluate(learner, data))
        if step % _REPORT_EVERY == 0 or step == training.steps:
            report(
                Progress(
                    step=step,
                    loss=float(np.mean(jax.device_get(losses[-_REPORT_EVERY:]))),
                    accuracy=correct[-1] / len(data.test_labels),
                    sparsity=float(sparsities[-1]) if prunes else None,
                )
            )
    return Run(
        params=learner.params,
        opt_state=learner.opt_state,
        losses=np.array(jax.device_get(losses), np.float32),
        sparsities=np.array(jax.device_get(sparsities), np.float32),
        evaluated_at=tuple(evaluated_at),
        correct=tuple(correct),
        test_images=len(data.test_labels),
        seconds=time.monotonic() - started,
    )


def _evaluate(learner: Learner, data: Dataset) -> int:
    """Count the test images that the learner classifies correctly."""
    starts = range(0, len(data.test_labels), _EVALUATION_BATCH)
    parts = [slice(start, start + _EVALUATION_BATCH) for start in starts]
    counts = [
        learner.correct(
            jnp.asarray(data.test_images[part]), jnp.asarray(data.test_labels[part])
        )
        for part in parts
    ]
    return sum(map(int, counts))
