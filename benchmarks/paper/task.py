"""What is trained, and how it is pruned."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import numpy as np
import optax

import gradprune_jax as gp

# Zhu & Gupta 2017, section 3: begin after some training, and end while the learning
# rate still allows to recover.
_WINDOW = (0.25, 0.75)
_MASK_UPDATES = 50
_WARM_UP = 0.05


# Tiny, to try a study out; for two cores; and at the paper's sizes.
ScaleName = Literal["quick", "laptop", "paper"]

# The curve of networks that were never pruned.
SMALL_DENSE = "small-dense"

# What names say of a rule's allocation; the paper's goes without saying.
_ALLOCATIONS = {"uniform": "", "erk": ", ERK", "global": ", global"}


class Task(Protocol):
    """A network, its data and how it learns; nothing in it knows of pruning.

    Attributes:
      steps: the number of optimizer updates.
      learning_rate: its peak.
      weight_decay: AdamW's, decoupled.
      examples: of a batch.
      unit: what they are.
    """

    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def examples(self) -> int: ...  # noqa: D102
    @property
    def unit(self) -> str: ...  # noqa: D102

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters, and what else a step hands to the next one."""

    def batch(self, seed: int, step: int) -> Any:
        """The batch of a step, the same for the same seed and step."""

    def loss(
        self, params: Any, carried: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The mean loss of a batch, and what the next step is handed."""

    def evaluate(self, params: Any, carried: Any) -> dict[str, float]:
        """The metrics on held-out data, by name."""


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One row of a study: a task, and the rules that its network is pruned by.

    Attributes:
      name: what the row is called.
      task: what is trained.
      rules: none for a dense network.
    """

    name: str
    task: Task
    rules: tuple[gp.Rule, ...] = ()

    @property
    def curve(self) -> str:
        """The curve that the row is a point of: how its network became small."""
        if not self.rules:
            return SMALL_DENSE
        return f"large-sparse{_ALLOCATIONS[self.rules[-1].allocation]}"

    @property
    def settings(self) -> str:
        """All that makes its trainings what they are."""
        return described((self.task, self.rules))

    def optimizer(self) -> optax.GradientTransformation:
        """The dense optimizer, wrapped by the pruning.

        The wrapper masks the gradient too: the norm is that of the live weights.
        """
        dense = self.dense_optimizer()
        return gp.with_gradual_prune(dense, list(self.rules)) if self.rules else dense

    def dense_optimizer(self) -> optax.GradientTransformation:
        """AdamW behind global-norm clipping."""
        steps = self.task.steps
        rate = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.task.learning_rate,
            warmup_steps=max(1, round(_WARM_UP * steps)),
            decay_steps=steps,
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, weight_decay=self.task.weight_decay),
        )


def described(value: Any) -> str:
    """A value as text, its fields of default values left out.

    So records stay those of their settings when a class gets a new field.

    Examples:
      >>> described((gp.Rule(None, where="bias"), 2))
      "(Rule(schedule=None, where='bias'), 2)"
    """
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    if not dataclasses.is_dataclass(value) or isinstance(value, nn.Module):
        return repr(value)
    fields = [
        f"{field.name}={described(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.repr and getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})"


def checksum(*arrays: np.ndarray) -> int:
    """One number for the bytes of arrays, in their order."""
    return functools.reduce(
        lambda crc, array: zlib.crc32(np.ascontiguousarray(array), crc), arrays, 0
    )


def window(
    sparsity: float,
    steps: int,
    begin: float = _WINDOW[0],
    end: float = _WINDOW[1],
    **fields: Any,
) -> gp.SparsitySchedule:
    """The paper's schedule over a part of training.

    Args:
      sparsity: the final one.
      steps: of the training.
      begin: the fraction of training after which pruning begins.
      end: the fraction after which the masks stay as they are.
      **fields: of `polynomial_schedule`.

    Returns:
      The schedule, with fifty mask updates if `every` is not given.
    """
    first, last = int(begin * steps), min(int(end * steps), steps - 1)
    fields.setdefault("every", max(1, (last - first) // _MASK_UPDATES))
    return gp.polynomial_schedule(sparsity, first, last, **fields)


def dense(tasks: Mapping[str, Task]) -> list[Configuration]:
    """Dense networks, and the first of them trained for half as many steps.

    Whether that is as good says whether the trainings are long enough.

    Args:
      tasks: by name, the largest network first.

    Returns:
      A configuration for each, and one more.
    """
    (name, largest), *_ = tasks.items()
    shorter = dataclasses.replace(largest, steps=largest.steps // 2)
    return [
        *(Configuration(name, task) for name, task in tasks.items()),
        Configuration(f"{name}, half as long", shorter),
    ]


def sparse(
    task: Task,
    sparsities: Sequence[float],
    *first: gp.Rule,
    allocation: str = "uniform",
) -> list[Configuration]:
    """The task with all weights pruned that the first rules leave.

    Args:
      task: what is trained.
      sparsities: the final ones.
      *first: rules that come before the one that prunes.
      allocation: of the rule that prunes.

    Returns:
      A configuration for each sparsity, on the window that all studies share.
    """
    return [
        Configuration(
            f"{100 * sparsity:g} %{_ALLOCATIONS[allocation]}",
            task,
            (
                *first,
                gp.Rule(window(sparsity, task.steps), allocation=allocation),
            ),
        )
        for sparsity in sparsities
    ]
