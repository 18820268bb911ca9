"""The page on deployment is true: its script runs in every runtime that it names."""

import importlib.util
import re
import subprocess
import sys

import pytest

RUNTIMES = ("jax2onnx", "onnxruntime", "openvino")


# Not imported here: openvino forks, and JAX warns of it.
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, RUNTIMES)), reason="needs the extra deploy"
)
def test_the_smaller_network_runs_in_every_runtime():
    """The script compares the outputs, and prints milliseconds."""
    run = subprocess.run(
        [sys.executable, "docs/deploy.py", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    cells = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in run.stdout.splitlines()
        if "│" in line
    ]
    shrunk = {name: found for name, _, found in cells if name}
    for name in ("JAX", "jax.export", "ONNX Runtime", "OpenVINO, from ONNX"):
        assert float(shrunk[name]) > 0
