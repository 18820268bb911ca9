"""One training, from its beginning or from where it was interrupted."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import gradprune_jax as gp
from benchmarks.paper import storage
from benchmarks.paper.task import SMALL_DENSE, Configuration, Task

REPORT_EVERY = 10  # reading a loss waits for the device: not at every step


class State(NamedTuple):
    """All that a training needs to go on.

    Attributes:
      step: the number of updates done, int32.
      seconds: how long they took, float32.
      params: the parameters.
      opt_state: the optimizer's state, masks included.
      carried: what a task's step hands to the next one.
    """

    step: jax.Array
    seconds: jax.Array
    params: Any
    opt_state: Any
    carried: Any


@functools.partial(jax.jit, static_argnums=0)
def _init(task: Task, key: jax.Array) -> tuple[Any, Any]:
    """A task's beginning; one program for all that begin alike, pruned or not."""
    return task.init(key)


class Program(NamedTuple):
    """A configuration's compiled functions, shared by its seeds."""

    init: Callable[[Any], Any]
    step: Any  # (State, batch, key) -> (State, loss), jitted


@functools.lru_cache(maxsize=1)
def _program(configuration: Configuration) -> Program:
    """The optimizer's beginning, and a step that reuses the old state's memory."""
    tx = configuration.optimizer()
    step = step_of(configuration.task, tx)
    return Program(jax.jit(tx.init), jax.jit(step, donate_argnums=0))


def step_of(
    task: Task, tx: optax.GradientTransformation
) -> Callable[[State, Any, jax.Array], tuple[State, jax.Array]]:
    """A step of training, from the state, a batch and the key of all steps.

    Args:
      task: what is learned.
      tx: the optimizer, pruning included.

    Returns:
      A function that returns the next state, and the loss.
    """

    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, jax.Array]:
        key = jax.random.fold_in(key, state.step)
        (loss, carried), gradients = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, state.carried, batch, key
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = State(state.step + 1, state.seconds, params, opt_state, carried)
        return state, loss

    return step


def begin(configuration: Configuration, seed: int) -> tuple[Program, State, jax.Array]:
    """The compiled functions of a training, its first state, and the key of its steps.

    Args:
      configuration: what to train.
      seed: of the initialisation and of dropout.

    Returns:
      The program, the state before the first step, and a key for all steps.
    """
    program = _program(configuration)
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params, carried = _init(configuration.task, init_key)
    state = State(
        jnp.zeros((), jnp.int32), jnp.zeros(()), params, program.init(params), carried
    )
    return program, state, step_key


def train(
    configuration: Configuration,
    seed: int,
    folder: pathlib.Path,
    report: Callable[[int, float], None],
    save_every: float = 60.0,
) -> dict[str, Any]:
    """Trains one configuration, and measures what comes out.

    Args:
      configuration: what to train.
      seed: of the initialisation, of the data's order and of dropout.
      folder: for the checkpoints, of this training alone.
      report: called every few steps with the number of steps done and the loss.
      save_every: seconds between checkpoints.

    Returns:
      What was measured: steps, seconds, parameters, non-zeros, bytes, metrics.

    Raises:
      FloatingPointError: if a weight is not finite in the end.
      ValueError: if a pruned weight is not zero.
    """
    state = last_state(configuration, seed, folder, report, save_every)
    return measure(configuration, state)


def last_state(
    configuration: Configuration,
    seed: int,
    folder: pathlib.Path,
    report: Callable[[int, float], None],
    save_every: float = 60.0,
) -> State:
    """The state after all steps, going on from a checkpoint if there is one.

    Its last checkpoint is that of the returned state.

    Args:
      configuration: what to train.
      seed: as of `train`.
      folder: for the checkpoints.
      report: as of `train`.
      save_every: seconds between checkpoints.
    """
    task = configuration.task
    program, state, step_key = begin(configuration, seed)
    with _checkpoints(folder) as manager:
        state = _restore(manager, state)
        begun = saved = time.monotonic()
        before = float(state.seconds)

        def save(state: State) -> State:
            state = state._replace(
                seconds=jnp.float32(before + time.monotonic() - begun)
            )
            manager.save(int(state.step), args=ocp.args.StandardSave(state))
            return state

        for step in range(int(state.step), task.steps):
            state, loss = program.step(state, task.batch(seed, step), step_key)
            if (step + 1) % REPORT_EVERY == 0 or step + 1 == task.steps:
                report(step + 1, float(loss))
                if time.monotonic() - saved >= save_every:
                    state, saved = save(state), time.monotonic()
        jax.block_until_ready(state)
        return state if manager.latest_step() == task.steps else save(state)


def _checkpoints(folder: pathlib.Path) -> ocp.CheckpointManager:
    """The newest checkpoint of a training; orbax wants an absolute path."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _restore(manager: ocp.CheckpointManager, state: State) -> State:
    """The state of the newest checkpoint, or the one at the beginning."""
    newest = manager.latest_step()
    if newest is None:
        return state
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    return manager.restore(newest, args=ocp.args.StandardRestore(like))


def measure(configuration: Configuration, state: State) -> dict[str, Any]:
    """The size and the quality of a trained network.

    Args:
      configuration: that was trained.
      state: after the last step.

    Returns:
      Steps, seconds, parameters, non-zeros, bytes, metrics.

    Raises:
      FloatingPointError: if a weight is not finite.
      ValueError: if a pruned weight is not zero.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise FloatingPointError(f"{configuration.name}: the training diverged.")
    if configuration.curve != SMALL_DENSE:
        gp.check_pruned(state.params, state.opt_state)
    return {
        "steps": configuration.task.steps,
        "seconds": round(float(state.seconds), 1),
        "parameters": sum(leaf.size for leaf in leaves),
        "nonzero": sum(int(np.count_nonzero(leaf)) for leaf in leaves),
        "bytes": storage.sizes(leaves),
        "metrics": configuration.task.evaluate(state.params, state.carried),
    }
