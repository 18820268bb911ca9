"""A step on a mesh of two axes ends: its all-reduces wait for each other in turn."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_a_transformer_trains_on_a_mesh_of_two_axes():
    """XLA ran those of the mask update and of the backward pass at once, and hung.

    In a process of its own, which XLA aborts after 40 s.
    """
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("JAX_", "XLA_"))}
    run = subprocess.run(
        [sys.executable, "-m", "tests.two_axis_worker"],
        cwd=ROOT,
        env={**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout == "sparsity 0.800\n"
