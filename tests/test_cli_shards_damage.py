"""Damaged and hostile folders of several files: one line, and no harm done."""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

import gradprune_jax as gp

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy

from gradprune_jax import export
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.output import write_checkpoint
from gradprune_jax._cli.pack import _write_dense
from tests.commands import invoke, succeed
from tests.shards import (
    EMBEDDING,
    FIRST,
    INDEX,
    SECOND,
    arrays_of,
    make_shards,
    same_bytes,
    write_folder,
)


@pytest.fixture
def model(tmp_path):
    return write_folder(tmp_path / "model", make_shards(), total_parameters=7)


def change(folder, edit):
    document = json.loads((folder / INDEX).read_text())
    edit(document)
    (folder / INDEX).write_text(json.dumps(document))


def put(name, place):
    return lambda folder: change(
        folder, lambda document: document["weight_map"].update({name: place})
    )


def with_metadata(**metadata):
    return lambda folder: change(folder, lambda d: d["metadata"].update(metadata))


def index_of(text):
    return lambda folder: (folder / INDEX).write_bytes(text)


def cut(folder):
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(content[:-10])


def swapped(folder):
    """The second file is that of another checkpoint."""
    arrays = arrays_of(folder / SECOND)
    arrays["model.position_ids"] = np.arange(9)
    safetensors.numpy.save_file(arrays, folder / SECOND)


DAMAGES = {
    "missing": (lambda f: (f / SECOND).unlink(), [SECOND, "is missing", "'model."]),
    "folder": (
        lambda f: ((f / SECOND).unlink(), (f / SECOND).mkdir()),
        [SECOND, "is missing", "'model."],
    ),
    "pipe": (
        lambda f: ((f / SECOND).unlink(), os.mkfifo(f / SECOND)),
        [SECOND, "is missing", "'model."],
    ),
    "cut": (cut, [SECOND, "damaged", "'model."]),
    "other checkpoint": (swapped, [INDEX, "total_size", SECOND[:5]]),
    "above": (put(EMBEDDING, f"../model/{FIRST}"), [INDEX, EMBEDDING, "name"]),
    "below": (put(EMBEDDING, f"a/{FIRST}"), [INDEX, EMBEDDING, "name"]),
    "absolute": (put(EMBEDDING, "/etc/passwd.safetensors"), [INDEX, EMBEDDING]),
    "windows": (put(EMBEDDING, "..\\a.safetensors"), [INDEX, EMBEDDING]),
    "drive": (put(EMBEDDING, "c:a.safetensors"), [INDEX, EMBEDDING]),
    "no safetensors": (put(EMBEDDING, "config.json"), [INDEX, EMBEDDING]),
    "number": (put(EMBEDDING, 7), [INDEX, EMBEDDING, "7"]),
    "no name": (put(EMBEDDING, ".safetensors"), [INDEX, EMBEDDING]),
    "other file": (put(EMBEDDING, SECOND), [FIRST, EMBEDDING, "does not list"]),
    "unknown": (put("model.head", FIRST), [FIRST, "lacks", "'model.head'"]),
    "unlisted": (
        lambda f: change(f, lambda d: d["weight_map"].pop(EMBEDDING)),
        [FIRST, EMBEDDING, "does not list"],
    ),
    "size": (with_metadata(total_size=7), [INDEX, "total_size", "7"]),
    "huge": (with_metadata(total_size=10**400), [INDEX, "total_size"]),
    "text": (with_metadata(total_size="9" * 9999), [INDEX, "total_size"]),
    "no map": (index_of(b'{"metadata": {}}'), [INDEX, "weight_map"]),
    "empty": (index_of(b'{"weight_map": {}}'), ["holds no arrays"]),
    "long name": (put("n" * 10**6, FIRST), [FIRST, "lacks"]),
    "long place": (put(EMBEDDING, "n" * 10**6), [INDEX, EMBEDDING]),
    "list": (index_of(b'{"weight_map": ["a"]}'), [INDEX, "weight_map"]),
    "not JSON": (index_of(b'{"weight_map"'), [INDEX, "no index"]),
    "no UTF-8": (index_of(b'{"\xff": 1}'), [INDEX, "no index"]),
    "nested": (index_of(b'{"a":' + b"[" * 10**5), [INDEX, "nested"]),
    "twice": (index_of(b'{"weight_map": {"a": "x", "a": "y"}}'), [INDEX, "'a' comes"]),
    "two indexes": (
        lambda f: shutil.copyfile(f / INDEX, f / f"other{INDEX}"),
        ["model", "give one"],
    ),
    "no index": (lambda f: (f / INDEX).unlink(), ["model", "no index", FIRST]),
}  # fmt: skip


OTHERS = [(command, "cut") for command in ("pack", "unpack", "report", "plan", "diff")]


@pytest.mark.parametrize(
    ("command", "damage"), [*(("prune", damage) for damage in DAMAGES), *OTHERS]
)
def test_damage_is_named_and_nothing_is_written(model, tmp_path, command, damage):
    spoil, words = DAMAGES[damage]
    spoil(model)
    before = sorted(tmp_path.rglob("*"))
    outs = {"report": [], "plan": [], "diff": [model]}.get(command, [tmp_path / "out"])
    sparsity = ["--sparsity", 0.5] if command in ("prune", "plan") else []
    result = invoke(command, model, *outs, *sparsity)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1200
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_shrinks_while_it_is_read_leaves_nothing(model, tmp_path):
    out = tmp_path / "out"
    checkpoint = open_checkpoint(model, params="/")
    cut(model)
    with pytest.raises(ValueError, match="shorter"):
        write_checkpoint(checkpoint, out, False, _write_dense)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_only_checkpoints_are_replaced(model, tmp_path):
    out = tmp_path / "out"
    arguments = ("prune", model, out, "--sparsity", 0.5)
    succeed(*arguments)
    assert invoke(*arguments).exit_code == 2  # exists already
    first = arrays_of(out / FIRST)
    succeed(*arguments[:-1], 0.25, "--force")
    assert not same_bytes(arrays_of(out / FIRST)[EMBEDDING], first[EMBEDDING])
    (out / "notes").mkdir()
    result = invoke(*arguments, "--force")
    assert result.exit_code == 1
    assert "'notes', which would be lost" in result.stderr
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    result = invoke("prune", model, home, "--sparsity", 0.5, "--force")
    assert result.exit_code == 1
    assert (home / "letter.txt").exists()
    (tmp_path / "link").symlink_to(model)
    result = invoke("prune", model, tmp_path / "link", "--sparsity", 0.5, "--force")
    assert result.exit_code == 1
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"model", "out", "home", "link"}


def test_a_model_is_pruned_in_its_own_place(model):
    arguments = ("prune", model, model, "--sparsity", 0.5, "--force")
    assert "'pytorch_model.bin', which would be lost" in invoke(*arguments).stderr
    (model / "pytorch_model.bin").unlink()
    succeed("prune", model, model, "--sparsity", 0.5, "--force")
    assert gp.sparsity(arrays_of(model / FIRST))[EMBEDDING] == 0.5
    assert (model / "config.json").exists()


def test_one_array_in_two_files_is_refused(tmp_path):
    """As a dense array, and as the parts of a sparse one."""
    folder = tmp_path / "model"
    params = {"a": np.eye(64, dtype=np.float32), "b": np.ones(4096, np.float32)}
    export.save_sparse(folder, params, max_shard_bytes=20_000)
    safetensors.numpy.save_file({"a": np.ones(4096, np.float32)}, folder / SECOND)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["b"]
    index["weight_map"]["a"] = SECOND
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="'a' is in another file"):
        export.open_sparse(folder)
    assert "'a' is in another file" in invoke("report", folder).stderr


def test_parts_of_a_sparse_array_in_another_file_are_refused(tmp_path):
    """Per file the names differ; in the index they would not."""
    params = {"w": np.eye(64, dtype=np.float32), "w.compressed": np.ones((64, 64))}
    with pytest.raises(ValueError, match="would both be stored as 'w.compressed'"):
        export.save_sparse(tmp_path / "out", params, max_shard_bytes=100)
    assert not list(tmp_path.iterdir())
    export.save_sparse(tmp_path / "empty", {}, max_shard_bytes=100)
    assert export.load_sparse(tmp_path / "empty") == {}


@pytest.mark.parametrize("moment", range(6))
def test_a_signal_while_a_folder_is_replaced(tmp_path, monkeypatch, moment):
    """At any moment: either the old folder or the new one, and nothing beside it."""
    folder = tmp_path / "model"
    export.save_sparse(folder, {"w": np.zeros((8, 8))}, max_shard_bytes=10**6)
    calls = iter(range(100))

    def stopped(method):
        def call(*args, **kwargs):
            step = next(calls)
            if step == moment and step % 2 == 0:
                raise KeyboardInterrupt
            result = method(*args, **kwargs)
            if step == moment:
                raise KeyboardInterrupt
            return result

        return call

    monkeypatch.setattr(pathlib.Path, "rename", stopped(pathlib.Path.rename))
    monkeypatch.setattr(shutil, "rmtree", stopped(shutil.rmtree))
    with contextlib.suppress(KeyboardInterrupt):
        export.save_sparse(
            folder, {"w": np.ones((8, 8))}, max_shard_bytes=10**6, overwrite=True
        )
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert export.load_sparse(folder)["w"].sum() in (0, 64)
