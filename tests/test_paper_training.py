"""The paper's trainings go on where they stopped, each with its own settings."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

from rich.console import Console

import gradprune_jax as gp
from benchmarks.paper import runs, storage, training
from benchmarks.paper.task import Configuration, window
from gradprune_jax.demo.data import DataError
from tests.line import LINE, Line


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    configuration = LINE.configurations[1]

    def interrupt(step, loss):
        if step == 20:
            raise KeyboardInterrupt

    def train(folder, report):
        steps = []
        measured = training.train(
            configuration,
            3,
            tmp_path / folder,
            lambda step, loss: (steps.append(step), report(step, loss)),
            save_every=0.0,
        )
        return steps, measured

    whole, expected = train("whole", lambda step, loss: None)
    with pytest.raises(KeyboardInterrupt):
        train("cut", interrupt)
    rest, measured = train("cut", lambda step, loss: None)
    assert (whole, rest) == ([10, 20, 25], [20, 25])
    assert measured.pop("seconds") > 0
    assert expected.pop("seconds") > 0
    assert measured == expected
    assert measured["nonzero"] == 6


def test_only_trainings_with_other_settings_are_run_again(tmp_path, monkeypatch):
    trained, folders = [], []

    def train(configuration, seed, folder, report):
        trained.append((configuration.name, seed))
        report(25, 1.0)
        folders.append(folder)
        return {"metrics": {"error": 1.0}}

    monkeypatch.setattr(training, "train", train)
    console = Console(quiet=True)
    records = runs.run(LINE, tmp_path, console)
    assert trained == [("dense", 0), ("dense", 1), ("80 %", 0), ("80 %", 1)]
    assert [each["seed"] for each in records] == [0, 1, 0, 1]
    assert all(each["commit"] for each in records)
    assert runs.run(LINE, tmp_path, console) == records
    slower = Configuration(
        "80 %", Line(learning_rate=0.01), LINE.configurations[1].rules
    )
    changed = dataclasses.replace(LINE, configurations=(LINE.configurations[0], slower))
    others = dataclasses.replace(LINE, checksum=1)
    for study, expected in [(changed, 2), (others, 4), (LINE, 0)]:
        trained.clear()
        runs.run(study, tmp_path, console)
        assert len(trained) == expected
    assert len(set(folders)) == len(folders)  # no checkpoint of other settings


def test_sparsities_side_by_side_are_trained_as_they_are_alone(tmp_path):
    dense, sparse = LINE.configurations
    others = [
        Configuration(f"{sparsity}", Line(), (gp.Rule(window(sparsity, 25)),))
        for sparsity in (0.5, 0.9)
    ]
    slower = Configuration("slower", Line(learning_rate=0.01), sparse.rules)
    study = dataclasses.replace(
        LINE, configurations=(dense, sparse, *others, slower), seeds=2
    )
    console = Console(quiet=True)
    alone, together = (
        runs.run(study, tmp_path / name, console, side_by_side=name == "together")
        for name in ("alone", "together")
    )
    for one, other in zip(alone, together, strict=True):
        assert one.pop("seconds") >= 0 <= other.pop("seconds")
        assert one == other
    groups = runs._groups([(each, 0) for each in study.configurations], True)
    assert [len(group) for group in groups] == [1, 3, 1]


def test_a_damaged_file_of_records_is_left_as_it_is(tmp_path):
    file = tmp_path / "line.json"
    file.write_text("[{")
    with pytest.raises(DataError, match=r"line\.json: is damaged .* move it away"):
        runs.run(LINE, tmp_path, Console(quiet=True))
    assert file.read_text() == "[{"


def test_a_training_that_diverges_is_stopped(tmp_path):
    diverging = Configuration("dense", Line(steps=2, learning_rate=float("nan")))
    with pytest.raises(FloatingPointError, match="dense: the training diverged"):
        training.train(diverging, 0, tmp_path, lambda step, loss: None)


def test_gradients_are_clipped_before_adam_sees_them():
    gradients = {"kernel": np.full((6, 5), 3.0, np.float32)}
    params = jax.tree.map(np.zeros_like, gradients)
    tx = LINE.configurations[1].optimizer()
    update = jax.jit(tx.update)

    def last(first):
        _, state = update(first, tx.init(params), params)
        return update(gradients, state, params)[0]

    larger = jax.tree.map(lambda leaf: 1_000 * leaf, gradients)
    np.testing.assert_allclose(
        last(larger)["kernel"], last(gradients)["kernel"], rtol=1e-5
    )


def test_bytes_of_a_sparse_matrix_are_those_of_its_arrays():
    leaf = np.zeros((10, 64), np.float32)
    leaf[:, :3] = 1
    assert storage.sizes([leaf]) == {
        "dense": 4 * 640,
        "bitmask": 4 * 30 + 640 // 8,
        "csr": 4 * 30 + 4 * 30 + 4 * 11,
    }
    dense = np.ones((10, 64), np.float32)
    assert set(storage.sizes([dense]).values()) == {dense.nbytes}
