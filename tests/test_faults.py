"""Killed at a random step, restored, and trained on."""

import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

ROOT = pathlib.Path(__file__).parents[1]
RNG = random.Random(0)
# Between the first checkpoint and the last mask update. At the second a checkpoint is
# being written, in the background.
KILL_STEPS = [RNG.randrange(9, 20), RNG.choice([8, 12, 16])]


def worker(folder, mesh):
    """The arguments of a process that trains from the latest checkpoint in a folder."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_"))
    }
    module = ["-m", "tests.training_worker"]
    return dict(
        args=[sys.executable, *module, str(folder), *map(str, mesh)],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu"},
        text=True,
    )


def train(folder, mesh=(4, 2)):
    """Trains to the end, and returns the arrays by step."""
    result = subprocess.run(
        **worker(folder, mesh),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    arrays = {}
    for path in (folder / "arrays").iterdir():
        with np.load(path) as file:
            arrays[int(path.stem)] = [file[name] for name in file.files]
    return arrays


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def killed_after(tmp_path_factory):
    """Trains on the mesh of 4 x 2, up to a step; returns the folder of checkpoints."""

    @functools.cache
    def train_and_kill(step):
        folder = tmp_path_factory.mktemp("killed")
        with subprocess.Popen(
            **worker(folder, (4, 2)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            for line in process.stdout:
                if int(line) == step:
                    process.kill()
                    break
                process.stdin.write("\n")
                process.stdin.flush()
        assert process.returncode == -signal.SIGKILL
        return folder / "checkpoints"

    return train_and_kill


def test_a_killed_training_goes_on_with_the_same_bits(
    killed_after, uninterrupted, tmp_path
):
    step = KILL_STEPS[0]
    shutil.copytree(killed_after(step), tmp_path / "checkpoints")
    continued = train(tmp_path)
    assert 0 < min(continued) <= step
    for later, arrays in continued.items():
        assert_same_bits(arrays, uninterrupted[later])


def test_a_killed_training_goes_on_with_exact_masks_on_another_mesh(
    killed_after, uninterrupted, tmp_path
):
    """The worker compares the masks after every step with the oracle's."""
    step, mesh = KILL_STEPS[1], (2, 4)
    shutil.copytree(killed_after(step), tmp_path / "checkpoints")
    continued = train(tmp_path, mesh)
    restored = min(continued)
    assert 0 < restored <= step
    assert_same_bits(continued[restored], uninterrupted[restored])
