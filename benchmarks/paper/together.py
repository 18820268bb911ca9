"""Trainings that differ in their sparsity alone, side by side in one program.

A small network leaves most of an accelerator idle: there several of them take hardly
longer than one. The target sparsities are traced, and `vmap` runs over them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.paper import training
from benchmarks.paper.task import Configuration


def kind(configuration: Configuration) -> Hashable:
    """What configurations of one program have in common; dense ones have a None."""
    if not configuration.rules:
        return None
    common = _with_sparsity(configuration, 0.0)
    return common.task, common.rules


def train(
    configurations: Sequence[Configuration],
    seed: int,
    report: Callable[[int, float], None],
) -> list[dict[str, Any]]:
    """Trains configurations of one kind, and measures what comes out.

    Each is trained as it would be alone; checkpoints are not written.

    Args:
      configurations: what to train, all of the same `kind`.
      seed: of all of them.
      report: called every few steps with the number of steps done and the mean loss.

    Returns:
      Of each what `training.train` returns, and its share of the seconds.
    """
    first, *_ = configurations
    task, runs = first.task, len(configurations)
    targets = jnp.array(
        [each.rules[-1].schedule.final_sparsity for each in configurations]
    )
    _, state, key = training.begin(first, seed)
    # All begin alike, and count their steps together.
    counts = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state.opt_state)
    axes: Any = training.State(None, None, 0, counts, 0)  # type: ignore[arg-type]
    state = jax.vmap(lambda _: state, out_axes=axes)(targets)

    def one(target: jax.Array, *arguments: Any) -> tuple[training.State, jax.Array]:
        pruned = _with_sparsity(first, target)
        return training.step_of(task, pruned.optimizer())(*arguments)

    side_by_side = jax.vmap(one, in_axes=(0, axes, None, None), out_axes=(axes, 0))
    step = jax.jit(lambda *each: side_by_side(targets, *each), donate_argnums=0)
    begun = time.monotonic()
    for number in range(1, task.steps + 1):
        state, losses = step(state, task.batch(seed, number - 1), key)
        if number % training.REPORT_EVERY == 0 or number == task.steps:
            report(number, float(losses.mean()))
    jax.block_until_ready(state)
    state = state._replace(seconds=jnp.float32(time.monotonic() - begun) / runs)
    return [
        training.measure(configuration, _run(state, index))
        for index, configuration in enumerate(configurations)
    ]


def _with_sparsity(configuration: Configuration, sparsity: Any) -> Configuration:
    """The configuration with another final sparsity in its last rule."""
    *others, last = configuration.rules
    schedule: Any = dataclasses.replace(last.schedule, final_sparsity=sparsity)
    rules = (*others, dataclasses.replace(last, schedule=schedule))
    return dataclasses.replace(configuration, rules=rules)


def _run(state: training.State, index: int) -> training.State:
    """The state of one run; all have the counts of steps."""
    return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, state)
