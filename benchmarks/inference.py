"""Inference with sparse arrays: products of BCOO and BCSR against dense ones."""

from __future__ import annotations

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import gradprune_jax as gp
from benchmarks import stored
from benchmarks.speed.timing import medians
from gradprune_jax import export

SHAPES = ((512, 512), (2048, 2048), (4096, 1024))
BATCHES = (1, 32)
SPARSITIES = (0.5, 0.9, 0.95, 0.98, 0.99)


def measure(
    shape: tuple[int, int], batch: int, sparsity: float, repeats: int
) -> dict[str, Any]:
    """The milliseconds of `kernel.T @ x`, dense and sparse, in turns.

    The sparse matrix stands on the left, as both formats want it.
    """
    rng = np.random.default_rng(0)
    dense = jnp.asarray(rng.normal(size=shape[::-1]), jnp.float32)
    pruned, _ = gp.prune({"kernel": dense}, sparsity)
    kernels = [
        pruned["kernel"],
        export.to_bcoo(pruned)["kernel"],
        export.to_bcsr(pruned)["kernel"],
    ]
    x = jnp.asarray(rng.normal(size=(shape[0], batch)), jnp.float32)
    product = jax.jit(lambda kernel, x: kernel @ x)
    expected = np.asarray(product(kernels[0], x))
    for kernel in kernels:
        np.testing.assert_allclose(product(kernel, x), expected, rtol=1e-3, atol=1e-3)
    calls = [functools.partial(product, kernel, x) for kernel in kernels]
    times = medians(calls, repeats)
    case = {"shape": shape, "batch": batch, "sparsity": sparsity}
    return case | dict(zip(("dense", "bcoo", "bcsr"), times, strict=True))


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| kernel | batch | sparsity | dense, ms | BCOO / dense | BCSR / dense |",
        "|-|-|-|-|-|-|",
    ]
    lines += [
        f"| {row['shape'][0]:,} x {row['shape'][1]:,} | {row['batch']} "
        f"| {100 * row['sparsity']:.0f} % | {row['dense']:.3f} "
        f"| {row['bcoo'] / row['dense']:.1f} | {row['bcsr'] / row['dense']:.1f} |"
        for row in results["products"]
    ]
    lines += [
        "",
        f"Medians of {results['repeats']} calls in turns, by `python -m "
        f"benchmarks.inference` on {results['machine']}, {results['date']}, "
        f"jax {results['jax']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(prog="benchmarks.inference", description=__doc__)
    parser.add_argument("--repeats", type=int, default=21, help="calls of each case")
    parser.add_argument("--dry", action="store_true", help="print only, store nothing")
    arguments = parser.parse_args()
    cases = [
        (shape, batch, sparsity)
        for shape in SHAPES
        for batch in BATCHES
        for sparsity in SPARSITIES
    ]
    products = [measure(*case, arguments.repeats) for case in track(cases, "products")]
    results = {"products": products, "repeats": arguments.repeats} | stored.machine()
    print(table(results))
    if not arguments.dry:
        stored.write("inference", results, table(results))


if __name__ == "__main__":
    main()
