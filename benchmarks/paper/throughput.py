"""`python -m benchmarks.paper.throughput`: how fast the largest networks are trained.

Run it alone, with the same number of cores and the same settings as the trainings.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from benchmarks import stored
from benchmarks.paper import training
from benchmarks.paper.studies import STUDIES
from benchmarks.paper.study import Study
from benchmarks.speed.timing import milliseconds

_STUDIES = ("mlp", "cnn", "mobilenet", "lstm", "seq2seq")
_STEPS = 40
_PEAK_SIZE = 2_048  # of the matrices whose product is the machine's peak


def measure(study: Study) -> dict[str, Any]:
    """Times training steps of a study's first network, on the batches of its training.

    Args:
      study: whose first network is trained.

    Returns:
      The examples of a batch and what they are, the mean milliseconds of a step, and
      the floating-point operations of its products and convolutions.
    """
    task = study.configurations[0].task
    program, state, key = training.begin(study.configurations[0], seed=0)
    batches = [task.batch(0, step) for step in range(_STEPS)]
    operations = [_operations(program.step, state, batch, key) for batch in batches]
    for batch in batches:  # compiles a step for each shape
        state, _ = program.step(state, batch, key)
    jax.block_until_ready(state)
    begun = time.perf_counter()
    for batch in batches:
        state, _ = program.step(state, batch, key)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begun) / _STEPS
    return {
        "study": study.title,
        "examples": task.examples,
        "unit": task.unit,
        "milliseconds": 1e3 * seconds,
        "operations": statistics.mean(operations),
    }


def _operations(step: Any, *arguments: Any) -> int:
    """The floating-point operations of a step; only its shapes matter."""
    return products(step.trace(*arguments).jaxpr.jaxpr)


def products(program: core.Jaxpr) -> int:
    """Counts the floating-point operations of a program's products and convolutions.

    A multiplication and an addition are two; a loop counts as often as it is run, which
    XLA's own count leaves out.

    Args:
      program: with no loop whose length depends on values.

    Returns:
      The number of operations.

    Examples:
      >>> program = jax.make_jaxpr(jnp.matmul)(jnp.ones((3, 4)), jnp.ones((4, 5)))
      >>> products(program.jaxpr)  # 60 multiplications, 60 additions
      120
    """
    total = 0
    for equation in program.eqns:
        inputs = [each.aval.shape for each in equation.invars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            size = np.prod([inputs[0][axis] for axis in contracted])
            total += 2 * equation.outvars[0].aval.size * int(size)
        elif equation.primitive.name == "conv_general_dilated":
            numbers = equation.params["dimension_numbers"]
            outputs = inputs[1][numbers.rhs_spec[0]]
            size = np.prod(inputs[1]) // outputs
            total += 2 * equation.outvars[0].aval.size * int(size)
        times = equation.params.get("length", 1)
        total += times * sum(map(products, _inner_programs(equation)))
    return total


def _inner_programs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs that an equation runs, such as the body of a loop."""
    programs = core.Jaxpr, core.ClosedJaxpr
    values = list(equation.params.values())
    for value in jax.tree.leaves(
        values, is_leaf=lambda each: isinstance(each, programs)
    ):
        if isinstance(value, programs):
            yield value.jaxpr if isinstance(value, core.ClosedJaxpr) else value


def peak() -> float:
    """The floating-point operations a second of a large product of matrices."""
    matrix = jnp.ones((_PEAK_SIZE, _PEAK_SIZE))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    fastest = min(milliseconds(lambda: product(matrix, matrix)) for _ in range(10))
    return 2 * _PEAK_SIZE**3 / (fastest / 1e3)


def table(rows: list[dict[str, Any]], fastest: float) -> str:
    """The measurements as Markdown."""
    lines = [
        "| largest network of | batch | a step, ms | a second | of the peak |",
        "|-|-|-|-|-|",
    ]
    lines += [
        f"| {row['study']} | {row['examples']:,} {row['unit']} "
        f"| {row['milliseconds']:.1f} "
        f"| {1e3 * row['examples'] / row['milliseconds']:,.0f} {row['unit']} "
        f"| {100 * row['operations'] / (row['milliseconds'] / 1e3) / fastest:.0f} % |"
        for row in rows
    ]
    machine = stored.machine()
    return "\n".join(lines) + (
        f"\n\nMeans of {_STEPS} steps by `python -m benchmarks.paper.throughput` on "
        f"{len(os.sched_getaffinity(0))} of {machine['machine']}, {machine['date']}, "
        f"jax {machine['jax']}; the peak is a product of matrices of {_PEAK_SIZE:,}, "
        f"{fastest / 1e9:.0f} GFLOP/s."
    )


def main() -> None:
    """Times a step of each study, and puts the table into benchmarks/README.md."""
    fastest = peak()
    rows = [measure(STUDIES[name]("laptop", None)) for name in _STUDIES]
    stored.insert("throughput", table(rows, fastest))


if __name__ == "__main__":
    main()
