"""What a step and a mask update cost: RigL, SET, gradual pruning and Adam alone."""

from __future__ import annotations

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradprune_jax as gp
from benchmarks import stored
from benchmarks.speed import timing

_EVERY = 10**6  # so far apart that a step is an update or not, as it is called
_SPARSITY = 0.9


def measure(*, quick: bool = False) -> list[dict[str, Any]]:
    """Times the optimizer's step with and without a mask update, in turns.

    Args:
      quick: whether the kernels are small.

    Returns:
      For each method its milliseconds: of a step, and of a step with a mask update.
    """
    size = 64 if quick else 1_000
    params = {
        f"layer{i}": {"kernel": jax.random.normal(key, (size, size))}
        for i, key in enumerate(jax.random.split(jax.random.key(0), 10))
    }
    adam = optax.adam(1e-3)
    window = {"end_step": 2 * _EVERY, "every": _EVERY}
    schedule = gp.polynomial_schedule(_SPARSITY, 0, 2 * _EVERY, every=_EVERY)
    methods = {
        "Adam alone": adam,
        "gradual pruning": gp.with_gradual_prune(adam, schedule),
        "gradual pruning by movement": gp.with_gradual_prune(
            adam, schedule, score=gp.Movement()
        ),
        "RigL": gp.with_sparse_training(adam, _SPARSITY, **window),
        "SET": gp.with_sparse_training(adam, _SPARSITY, grow="random", **window),
        "static": gp.with_sparse_training(adam, _SPARSITY, grow=None),
    }
    steps = [
        _step(tx, params, count) for tx in methods.values() for count in (1, _EVERY)
    ]
    times = timing.in_turns(steps, repeats=3 if quick else 15)
    medians = [statistics.median(each) for each in times]
    return [
        {"method": name, "step": medians[2 * i], "update": medians[2 * i + 1]}
        for i, name in enumerate(methods)
    ]


def _step(tx: optax.GradientTransformation, params: Any, count: int) -> Any:
    """A step of the optimizer that donates its state, from some count on."""
    gradients = jax.tree.map(lambda leaf: jnp.sin(1e3 * leaf), params)

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        state = _at_count(state, count)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    carried = [jax.tree.map(jnp.copy, params), tx.init(params)]

    def run() -> Any:
        carried[:] = compiled(*carried)
        return carried

    return run


def _at_count(state: Any, count: int) -> Any:
    """A state whose pruning stands at a step."""

    def is_state(node: Any) -> bool:
        return isinstance(node, gp.GradualPruneState)

    return jax.tree.map(
        lambda node: node._replace(count=jnp.int32(count)) if is_state(node) else node,
        state,
        is_leaf=is_state,
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements as Markdown, as ratios to Adam alone."""
    base = rows[0]["step"]
    lines = [
        "| | a step, ms | to Adam alone | a step with a mask update, ms |",
        "|-|-|-|-|",
    ]
    lines += [
        f"| {row['method']} | {row['step']:.2f} | {row['step'] / base:.2f} | "
        + (f"{row['update']:.1f} |" if row["method"] not in _WITHOUT else "- |")
        for row in rows
    ]
    machine = stored.machine()
    return "\n".join(lines) + (
        "\n\nThe optimizer alone, on ten float32 kernels of a million weights at "
        f"{100 * _SPARSITY:g} %; medians in turns by `python -m "
        f"benchmarks.sparse_training cost` on {machine['machine']}, "
        f"{machine['date']}, jax {machine['jax']}."
    )


_WITHOUT = ("Adam alone", "static")
