"""Time and FLOPs after a share of every group of channels is cut."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import numpy as np

import gradprune_jax as gp
from benchmarks.shrink.networks import Case
from benchmarks.speed.timing import medians

SHARES = (0.5, 0.75)
BATCHES = (1, 64)
_SECONDS_A_CASE = 20.0
_MOST_REPEATS = 21


def measure(case: Case, name: str, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """The milliseconds of a network and of its cut ones, in turns, for every batch.

    Args:
      case: the network.
      name: what to call it.
      batches: the sizes of batches.
    """
    started = time.perf_counter()
    groups = gp.channel_groups(case.fn, case.params, case.batch(1))
    seconds_of_groups = time.perf_counter() - started
    networks = {0.0: (case.fn, case.params)}
    shrink_seconds = {}
    errors = {}
    for share in SHARES:
        structure = gp.CoupledChannels(groups)
        pruned, _ = gp.prune(case.params, share, structure=structure)
        started = time.perf_counter()
        shrunk = gp.shrink(case.fn, pruned, case.batch(1))
        shrink_seconds[share] = time.perf_counter() - started
        networks[share] = (shrunk.fn, shrunk.params)
        errors[share] = relative_error(
            jax.jit(case.fn)(pruned, case.batch(2)),
            jax.jit(shrunk.fn)(shrunk.params, case.batch(2)),
        )
        del pruned
    rows = []
    for size in batches:
        inputs = case.batch(size)
        compiled = {
            share: jax.jit(fn).lower(params, inputs).compile()
            for share, (fn, params) in networks.items()
        }
        calls = [
            functools.partial(compiled[share], params, inputs)
            for share, (_, params) in networks.items()
        ]
        started = time.perf_counter()
        jax.block_until_ready(calls[0]())
        once = time.perf_counter() - started
        repeats = int(np.clip(_SECONDS_A_CASE / (2 * once), 3, _MOST_REPEATS))
        times = dict(zip(networks, medians(calls, repeats), strict=True))
        rows += [
            {
                "network": name,
                "batch": size,
                "share": share,
                "parameters": size_of(case.params),
                "parameters_left": size_of(networks[share][1]),
                "flops": _flops(compiled[0.0]),
                "flops_left": _flops(compiled[share]),
                "ms": times[0.0],
                "ms_left": times[share],
                "error": errors[share],
                "groups": len(groups.free),
                "groups_seconds": seconds_of_groups,
                "shrink_seconds": shrink_seconds[share],
            }
            for share in SHARES
        ]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| network | batch | cut | parameters | FLOPs fall | ms | time falls "
        "| time / FLOPs | error | groups, s | shrink, s |",
        "|-|-|-|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        flops = row["flops"] / row["flops_left"]
        faster = row["ms"] / row["ms_left"]
        lines.append(
            f"| {row['network']} | {row['batch']} | {100 * row['share']:.0f} % "
            f"| {row['parameters']:,} -> {row['parameters_left']:,} | {flops:.1f} "
            f"| {row['ms']:.2f} -> {row['ms_left']:.2f} | {faster:.1f} "
            f"| {faster / flops:.2f} | {row['error']:.0e} "
            f"| {row['groups_seconds']:.1f} | {row['shrink_seconds']:.1f} |"
        )
    return "\n".join(lines)


def compiled_flops(fn: Any, params: Any, inputs: Any) -> float:
    """Floating-point operations of a function's program, by XLA's own estimate."""
    return _flops(jax.jit(fn).lower(params, inputs).compile())


def size_of(params: Any) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _flops(compiled: Any) -> float:
    """Floating-point operations, by XLA's own estimate."""
    return float(compiled.cost_analysis()["flops"])


def relative_error(wanted: Any, found: Any) -> float:
    """The largest difference, over the largest number."""
    scale = np.abs(np.asarray(wanted)).max()
    return float(np.abs(np.asarray(wanted) - np.asarray(found)).max() / scale)
