"""Masks side by side with llm-compressor's, on the same weights and inputs."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from benchmarks.calibrated.experiment import LEVELS, METHODS, calibration
from benchmarks.calibrated.transformer import DecoderTask

_SCRIPT = pathlib.Path(__file__).with_name("llm_compressor_peer.py")
_SEQUENCES = 16


def measure(own: DecoderTask, params: Any, python: str) -> list[dict[str, Any]]:
    """Both libraries on the first perceptron layer and the query of every block.

    Args:
      own: the task.
      params: of the trained network.
      python: the Python of an environment with torch and llmcompressor.
    """
    matrices = _matrices(own, params)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        given, found = (
            pathlib.Path(folder, "given.npz"),
            pathlib.Path(folder, "out.npz"),
        )
        np.savez(
            given, **{f"{n}/{k}": v for n, m in matrices.items() for k, v in m.items()}
        )
        for level in LEVELS:
            for method in ("Wanda", "SparseGPT"):
                n, m = (0, 0) if level.pattern is None else level.pattern
                run = subprocess.run(
                    [
                        *(python, str(_SCRIPT), str(given), str(found), method),
                        *(str(level.sparsity), str(m - n), str(m)),
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if run.returncode:
                    raise SystemExit(f"{python} {_SCRIPT} failed:\n{run.stderr}")
                theirs = np.load(found)
                alike, errors = [], []
                for name, matrix in matrices.items():
                    new, mask = _ours(matrix, level, METHODS[method])
                    alike.append(np.mean(mask == (theirs[name] != 0)))
                    errors.append([_error(matrix, w) for w in (new, theirs[name])])
                ours, other = np.mean(errors, 0)
                rows.append(
                    {
                        "method": method,
                        "level": level.name,
                        "matrices": len(matrices),
                        "alike": float(np.mean(alike)),
                        "ours": float(ours),
                        "theirs": float(other),
                    }
                )
    return rows


def _matrices(own: DecoderTask, params: Any) -> dict[str, dict[str, np.ndarray]]:
    """Weights (outputs, inputs) and rows of inputs."""
    words = jnp.concatenate(calibration(own))[:_SEQUENCES]
    _, kept = own.network.apply(
        {"params": params},
        words,
        capture_intermediates=lambda module, _: isinstance(module, nn.LayerNorm),
        mutable=["intermediates"],
    )
    width, found = own.network.width, {}
    for layer in range(own.network.layers):
        block, seen = params[f"block{layer}"], kept["intermediates"][f"block{layer}"]
        for norm, kernel in (
            ("norm1", block["attention"]["query"]["kernel"]),
            ("norm2", block["up"]["kernel"]),
        ):
            rows = np.asarray(seen[norm]["__call__"][0]).reshape(-1, width)
            weight = np.asarray(kernel).reshape(width, -1).T
            found[f"block{layer} {norm}"] = {"weight": weight, "inputs": rows}
    return found


def _ours(matrix: Any, level: Any, method: Any) -> tuple[np.ndarray, np.ndarray]:
    new, masks = gp.prune_calibrated(
        lambda params, x: x @ params["weight"].T,
        {"weight": matrix["weight"]},
        [matrix["inputs"]],
        level.sparsity,
        structure=level.structure(1),
        method=method,
    )
    return np.asarray(new["weight"]), np.asarray(masks["weight"])


def _error(matrix: Any, new: np.ndarray) -> float:
    """The relative error of the outputs."""
    outputs, after = (matrix["inputs"] @ w.T for w in (matrix["weight"], new))
    return float(np.linalg.norm(after - outputs) / np.linalg.norm(outputs))
