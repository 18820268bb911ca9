"""Side by side with Torch-Pruning: the same network, the same share of every group."""

from __future__ import annotations

import json
import pathlib
import subprocess
import time
from typing import Any

import jax
import numpy as np

import gradprune_jax as gp
from benchmarks.shrink.networks import case
from benchmarks.shrink.speed import SHARES, compiled_flops, relative_error, size_of

_SCRIPT = pathlib.Path(__file__).with_name("torch_pruning_peer.py")


def measure(python: str) -> list[dict[str, Any]]:
    """Both libraries at every share.

    Args:
      python: the Python of an environment with torch and torch-pruning.
    """
    return [
        {"share": share, "ours": _ours(share), "theirs": _theirs(python, share)}
        for share in SHARES
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| ResNet-20 | cut | parameters left | FLOPs left | analysis, s | cutting, s "
        "| outputs change by pruning | by cutting |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        for name, key in (("gradprune_jax", "ours"), ("Torch-Pruning", "theirs")):
            own = row[key]
            cutting = own.get("change_by_cutting")
            lines.append(
                f"| {name} | {100 * row['share']:.0f} % "
                f"| {own['parameters_left']:,} of {own['parameters']:,} "
                f"| {100 * own['operations_left'] / own['operations']:.1f} % "
                f"| {own['analysis_seconds']:.2f} | {own['cut_seconds']:.2f} "
                f"| {100 * own['change']:.0f} % "
                f"| {'at once' if cutting is None else f'{cutting:.0e}'} |"
            )
    return "\n".join(lines)


def _ours(share: float) -> dict[str, Any]:
    network = case("ResNet-20")
    image = network.batch(1)
    started = time.perf_counter()
    groups = gp.channel_groups(network.fn, network.params, image)
    analysed = time.perf_counter()
    structure = gp.CoupledChannels(groups)
    pruned, _ = gp.prune(network.params, share, structure=structure)
    begun = time.perf_counter()
    shrunk = gp.shrink(network.fn, pruned, image)
    cut = time.perf_counter()
    outputs = [
        np.asarray(jax.jit(fn)(params, image))
        for fn, params in (
            (network.fn, network.params),
            (network.fn, pruned),
            (shrunk.fn, shrunk.params),
        )
    ]
    return {
        "parameters": size_of(network.params),
        "parameters_left": size_of(shrunk.params),
        "operations": compiled_flops(network.fn, network.params, image),
        "operations_left": compiled_flops(shrunk.fn, shrunk.params, image),
        "analysis_seconds": analysed - started,
        "cut_seconds": cut - begun,
        "change": relative_error(outputs[0], outputs[1]),
        "change_by_cutting": relative_error(outputs[1], outputs[2]),
    }


def _theirs(python: str, share: float) -> dict[str, Any]:
    run = subprocess.run(
        [python, str(_SCRIPT), str(share)], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{python} {_SCRIPT} failed:\n{run.stderr}")
    return json.loads(run.stdout)
