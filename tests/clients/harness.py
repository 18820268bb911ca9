"""What every client test asserts and records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import gradprune_jax as gp


def check_exact(params: Any, opt_state: Any, planned: gp.Plan) -> None:
    """Asserts that parameters are pruned as the plan says, to the last weight.

    The leaves that have masks are those of the plan, each keeps as many weights as
    planned, and pruned weights are +0.0 and not -0.0.
    """
    gp.check_pruned(params, opt_state)
    kept = {leaf.path: leaf.kept for leaf in planned.pruned}
    pairs = named_with_masks(params, gp.get_masks(opt_state))
    assert sorted(path for path, _, _ in pairs) == sorted(kept)
    for path, weights, mask in pairs:
        mask = np.asarray(mask)
        assert mask.sum() == kept[path], path
        pruned = np.asarray(weights)[~mask].astype(np.float32)
        assert (pruned == 0).all(), path
        assert not np.signbit(pruned).any(), path


def named_with_masks(params: Any, masks: Any) -> list[tuple[str, Any, Any]]:
    """Pruned leaves with their names and masks, whatever boxes hold them."""
    found: list[tuple[Any, Any]] = []
    gp.map_with_masks(lambda *pair: found.append(pair) or pair[0], params, masks)
    names = [path for path in gp.sparsity(masks) if path != "total"]
    assert len(names) == len(found)
    return [(name, *pair) for name, pair in zip(names, found, strict=True)]


def same(one: Any, other: Any) -> bool:
    """Whether two trees hold the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in pairs
        if hasattr(a, "dtype")
        and not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)
    )


def seconds(run: Callable[[], Any]) -> float:
    """The seconds that a call takes until its results are there.

    Of a first step, with and without the link, this is the time of the compiler.
    """
    begin = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begin


def record(
    package: str,
    what: str,
    link: str,
    planned: gp.Plan,
    *,
    without: float | None = None,
    with_link: float | None = None,
) -> None:
    """Writes a row of the table in `docs/clients.md`.

    Args:
      package: the name under which the package is installed.
      what: the model, and what trains it.
      link: how the link goes in, as code.
      planned: the plan, whose shares of weights are written.
      without: the seconds of a first step without the link.
      with_link: the seconds of a first step with it.
    """
    weights = sum(leaf.size for leaf in planned.leaves)
    taken = sum(leaf.size for leaf in planned.pruned)
    missed = [leaf.path for leaf in planned.leaves if leaf.is_missed]
    row = {
        "package": f"{package} {importlib.metadata.version(package)}",
        "jax": jax.__version__,
        "what": what,
        "link": link,
        "taken": taken / weights,
        "missed": missed,
        "without": without,
        "with_link": with_link,
    }
    folder = pathlib.Path(os.environ.get("CLIENT_ROWS", "build/clients"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("a") as lines:
        lines.write(json.dumps(row) + "\n")
