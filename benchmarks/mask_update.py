"""What pruning costs: a mask update against sorting, and a step without one.

Every figure is a median over repeated calls after warm-up, blocked until ready, taken
side by side in one process. Prints a table, and writes it with the raw figures to
`benchmarks/results/mask_update.json` and into `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradprune_jax as gp

FOLDER = pathlib.Path(__file__).parent
BEGIN, END = "<!-- mask_update: begin -->", "<!-- mask_update: end -->"
SPARSITIES = (0.5, 0.9, 0.98)


def median_ms(*functions: Callable[[], Any], repeats: int) -> list[float]:
    """The median milliseconds of each function, taken in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        jax.block_until_ready(function())
    for _ in range(repeats):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            own.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def numpy_mask(weights: np.ndarray, kept: int) -> np.ndarray:
    """The usual way: magnitudes, partition, comparison; ties as they come."""
    magnitude = np.abs(weights)
    flat = magnitude.ravel()
    return magnitude >= np.partition(flat, flat.size - kept)[flat.size - kept]


@jax.jit
def argsort_mask(weights: jax.Array, kept: jax.Array) -> jax.Array:
    """The exact mask by a stable sort."""
    order = jnp.argsort(-jnp.abs(weights).ravel(), stable=True)
    rank = jnp.zeros(weights.size, jnp.int32).at[order].set(jnp.arange(weights.size))
    return (rank < kept).reshape(weights.shape)


def mask_update(size: int, repeats: int) -> dict[str, Any]:
    """One leaf of float32 normal weights: this library, NumPy, and an argsort."""
    side = int(size**0.5)
    host = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    params = {"kernel": jnp.asarray(host)}
    ours, of_numpy, of_argsort = [], [], []
    for sparsity in SPARSITIES:
        tx = gp.gradual_prune(gp.one_shot_schedule(sparsity, 0))
        state = tx.init(params)
        update = jax.jit(lambda s, p, tx=tx: tx.update(p, s, p)[1].masks)
        compiled = update.lower(state, params).compile()
        kept = host.size - round(sparsity * host.size)
        mine, numpys = median_ms(
            lambda c=compiled, s=state: c(s, params),
            lambda k=kept: numpy_mask(host, k),
            repeats=repeats,
        )
        ours.append(mine)
        of_numpy.append(numpys)
    of_argsort = median_ms(lambda: argsort_mask(params["kernel"], kept), repeats=3)
    return {
        "weights": host.size,
        "gradprune_ms": statistics.median(ours),
        "numpy_ms": statistics.median(of_numpy),
        "argsort_ms": of_argsort[0],
        "temporary_bytes_per_weight": compiled.memory_analysis().temp_size_in_bytes
        / host.size,
    }


def step_without_update(size: int, repeats: int) -> dict[str, Any]:
    """The optimizer alone, between mask updates, against Adam without pruning."""
    side = int(size**0.5)
    schedule = gp.one_shot_schedule(0.9, step=1_000_000)
    chains = {
        "adam": optax.adam(1e-3),
        "pruned": optax.chain(optax.adam(1e-3), gp.gradual_prune(schedule)),
    }
    runs = {}
    gradients = {"kernel": jnp.full((side, side), 1e-3)}
    for name, tx in chains.items():
        params = {"kernel": jnp.ones((side, side))}

        def step(carry: Any, tx: Any = tx) -> Any:
            params, state = carry
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        runs[name] = [jax.jit(step, donate_argnums=0), (params, tx.init(params))]

    def advance(name: str) -> Any:
        step, carry = runs[name]
        runs[name][1] = step(carry)
        return runs[name][1]

    adam, pruned = median_ms(
        lambda: advance("adam"), lambda: advance("pruned"), repeats=repeats
    )
    return {"weights": side * side, "adam_ms": adam, "chain_ms": pruned}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| weights | mask update, ms | NumPy, ms | argsort, ms | to NumPy | "
        "to argsort | temporary bytes a weight |",
        "|-|-|-|-|-|-|-|",
    ]
    for row in results["mask_update"]:
        ours, numpys, sort = (
            row[key] for key in ("gradprune_ms", "numpy_ms", "argsort_ms")
        )
        lines.append(
            f"| {row['weights']:,} | {ours:.2f} | {numpys:.2f} | {sort:.1f} | "
            f"{ours / numpys:.2f} | 1/{sort / ours:.0f} | "
            f"{row['temporary_bytes_per_weight']:.2f} |"
        )
    step = results["step"]
    lines += [
        "",
        f"A step of the optimizer alone without a mask update, {step['weights']:,} "
        f"weights: Adam {step['adam_ms']:.2f} ms, Adam with pruning "
        f"{step['chain_ms']:.2f} ms, ratio {step['chain_ms'] / step['adam_ms']:.3f}.",
        "",
        f"Measured by `make bench` on {results['machine']}, {results['date']}, "
        f"jax {results['jax']}.",
    ]
    return "\n".join(lines)


def write(results: dict[str, Any]) -> None:
    """Stores the figures, and the table between the marks in the README."""
    stored = FOLDER / "results" / "mask_update.json"
    stored.parent.mkdir(exist_ok=True)
    stored.write_text(json.dumps(results, indent=2) + "\n")
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--largest", type=int, default=10_000_000)
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    sizes = [n for n in (10**5, 10**6, 10**7) if n <= arguments.largest]
    device = jax.devices()[0]
    results = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {device.device_kind}",
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "mask_update": [mask_update(size, arguments.repeats) for size in sizes],
        "step": step_without_update(sizes[-1], arguments.repeats),
    }
    print(table(results))
    if not arguments.dry:
        write(results)


if __name__ == "__main__":
    main()
