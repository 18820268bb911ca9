"""Hugging Face's folders: several safetensors files with their index, in and out."""

import contextlib
import json
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy
from click.testing import CliRunner

from gradprune_jax import _cli, export
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.output import write_checkpoint
from gradprune_jax._cli.pack import _write_dense
from gradprune_jax._files import open_safetensors

INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-{i:05}-of-00002.safetensors" for i in (1, 2))
METADATA = {"format": "pt"}


def make_shards(seed=0):
    """A model as PyTorch names it, in two files."""
    rng = np.random.default_rng(seed)
    draw = rng.normal
    first = {
        "model.embed_tokens.weight": draw(size=(256, 64)).astype(jnp.bfloat16),
        "model.layers.0.mlp.up_proj.weight": draw(size=(16, 8)).astype(np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(8, np.float32),
    }
    second = {
        "model.layers.1.mlp.up_proj.weight": draw(size=(16, 8)).astype(jnp.bfloat16),
        "model.layers.1.mlp.gate.weight": draw(size=(4, 8)).astype(jnp.float8_e4m3fn),
        "model.position_ids": np.arange(8),
    }
    return {FIRST: first, SECOND: second}


def write_folder(folder, shards, **metadata):
    folder.mkdir()
    places = {name: file for file, arrays in shards.items() for name in arrays}
    size = sum(each.nbytes for arrays in shards.values() for each in arrays.values())
    for file, arrays in shards.items():
        safetensors.numpy.save_file(arrays, folder / file, METADATA)
    metadata = {"total_size": size} | metadata
    document = {"metadata": metadata, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(document))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"the weights once more")
    return folder


@pytest.fixture
def model(tmp_path):
    return write_folder(tmp_path / "model", make_shards(), total_parameters=7)


def invoke(*arguments):
    environment = {"COLUMNS": "200"}
    return CliRunner(env=environment).invoke(_cli.build(), [*map(str, arguments)])


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def arrays_of(file):
    return {name: np.asarray(each) for name, each in open_safetensors(file)[0].items()}


def same_bytes(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("given", ["folder", "index"])
def test_pruned_in_place_of_each_file(model, tmp_path, given, allocation):
    out = tmp_path / "pruned"
    source = model if given == "folder" else model / INDEX
    succeed("prune", source, out, "--sparsity", 0.75, "--allocation", allocation)
    names = sorted(file.name for file in out.iterdir())
    assert names == sorted([FIRST, SECOND, INDEX, "config.json"])
    assert (out / "config.json").read_bytes() == (model / "config.json").read_bytes()
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"] == json.loads((model / INDEX).read_text())["metadata"]
    whole = {name: each for a in make_shards().values() for name, each in a.items()}
    tree = {name.replace(".", "/"): each for name, each in whole.items()}
    pruned, _ = gp.prune(tree, 0.75, allocation=allocation)
    for file, arrays in make_shards().items():
        stored = arrays_of(out / file)
        assert stored.keys() == arrays.keys()
        for name in arrays:
            assert index["weight_map"][name] == file
            expected = np.asarray(pruned[name.replace(".", "/")])
            assert same_bytes(stored[name], expected.astype(arrays[name].dtype)), name
        with safetensors.safe_open(out / file, framework="numpy") as opened:
            assert opened.metadata() == METADATA


def test_patterns_lie_along_the_inputs(model, tmp_path):
    out = tmp_path / "pruned"
    succeed("prune", model, out, "--structure", "2:4", "--where", ".*proj/weight")
    kernel = arrays_of(out / FIRST)["model.layers.0.mlp.up_proj.weight"]
    assert ((kernel.reshape(16, 2, 4) != 0).sum(axis=2) == 2).all()  # (out, in)


def test_packed_and_unpacked_to_the_last_bit(model, tmp_path):
    pruned, packed, back = (tmp_path / name for name in ("pruned", "packed", "back"))
    succeed("prune", model, pruned, "--sparsity", 0.9)
    said = json.loads(succeed("pack", pruned, packed, "--json"))
    assert said["bytes"] == sum(f.stat().st_size for f in packed.glob("*.safetensors"))
    assert said["bytes"] < said["dense_bytes"]
    assert said["dense_bytes"] == sum(
        len(safetensors.numpy.save(arrays_of(pruned / file), METADATA))
        for file in (FIRST, SECOND)
    )
    index = json.loads((packed / INDEX).read_text())
    assert "model.embed_tokens.weight.bitmask" in index["weight_map"]
    assert index["metadata"]["total_size"] == sum(
        each.nbytes for f in (FIRST, SECOND) for each in arrays_of(packed / f).values()
    )
    succeed("unpack", packed, back)
    for file in (FIRST, SECOND):
        for name, each in arrays_of(pruned / file).items():
            assert same_bytes(arrays_of(back / file)[name], each)
    loaded = export.load_sparse(packed)
    expected = arrays_of(pruned / FIRST) | arrays_of(pruned / SECOND)
    assert loaded.keys() == expected.keys()


def test_plan_report_and_diff_read_folders(model, tmp_path):
    other = write_folder(tmp_path / "other", make_shards(seed=1))
    planned = json.loads(succeed("plan", model / INDEX, "--sparsity", 0.5, "--json"))
    kept = {each["path"]: each["kept"] for each in planned["parameters"]}
    assert kept["model/layers/0/mlp/up_proj/weight"] == 64
    assert len(kept) == 6
    said = json.loads(succeed("report", model, "--json"))
    assert [each["path"] for each in said["parameters"]] == sorted(
        name for name in (*make_shards()[FIRST], *make_shards()[SECOND])
        if "position_ids" not in name
    )  # fmt: skip
    said = json.loads(succeed("diff", model, other, "--json"))
    assert said["total"]["overlap"] == 1.0


def test_one_file_in_its_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    arrays = make_shards()[FIRST]
    safetensors.numpy.save_file(arrays, folder / "model.safetensors", METADATA)
    (folder / "config.json").write_text("{}")
    succeed("prune", folder, tmp_path / "out", "--sparsity", 0.5)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json"}


def test_a_name_that_ends_like_a_file_is_one(model, tmp_path):
    out = tmp_path / "all.safetensors"
    succeed("prune", model, out, "--sparsity", 0.5)
    shards = make_shards()
    assert arrays_of(out).keys() == (shards[FIRST] | shards[SECOND]).keys()


def test_parameters_below_a_place(model, tmp_path):
    out = tmp_path / "layers"
    place = "model/layers"
    succeed("prune", model, out, "--sparsity", 0.5, "--params", place)
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"]["0.mlp.up_proj.weight"] == FIRST
    assert index["weight_map"]["1.mlp.up_proj.weight"] == SECOND


def test_caches_link_to_their_files(model, tmp_path):
    """As Hugging Face's cache does: every file is a link to a blob elsewhere."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in model.iterdir():
        (snapshot / file.name).symlink_to(file)
    succeed("prune", snapshot, tmp_path / "out", "--sparsity", 0.5)
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


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


EMBEDDING = "model.embed_tokens.weight"
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


def test_a_file_of_safetensors_may_begin_like_an_index(tmp_path):
    """With the length of its header: 123 is a brace, and not every writer pads."""
    entry = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps(entry).encode().ljust(123)
    file = tmp_path / "model.safetensors"
    content = len(text).to_bytes(8, "little") + text + np.ones(4, np.float32).tobytes()
    file.write_bytes(content)
    assert content.startswith(b"{")
    succeed("prune", file, tmp_path / "out", "--sparsity", 0.5)
    assert export.load_sparse(file)["w"].sum() == 4


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


def test_shards_of_ones_own(tmp_path):
    params = {"dense": {"kernel": np.eye(64, dtype=np.float32)}, "w": np.ones((8, 8))}
    folder = tmp_path / "model"
    export.save_sparse(folder, params, max_shard_bytes=1000)
    assert sorted(f.name for f in folder.iterdir()) == [FIRST, SECOND, INDEX]
    loaded = export.load_sparse(folder, like=params)
    np.testing.assert_array_equal(loaded["dense"]["kernel"], params["dense"]["kernel"])
    with pytest.raises(FileExistsError, match="exists already"):
        export.save_sparse(folder, params, max_shard_bytes=1000)
    export.save_sparse(folder, params, max_shard_bytes=10**6, overwrite=True)
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        export.save_sparse(folder, params, max_shard_bytes=0)


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


def test_any_length_of_header_is_no_index(tmp_path):
    """31,520 bytes begin with a blank and a brace."""
    file = tmp_path / "model.safetensors"
    arrays = {"w": np.eye(8, dtype=np.float32)}
    for length in range(31_300, 31_600, 8):
        safetensors.numpy.save_file(arrays, file, {"note": "x" * length})
        if file.read_bytes()[:2] == b" {":
            break
    assert file.read_bytes()[:2] == b" {"
    assert export.load_sparse(file)["w"].sum() == 8


def test_modules_of_torch_may_be_called_params(tmp_path):
    shards = {FIRST: {"enc.params.weight": np.ones((4, 4), np.float32)},
              SECOND: {"head.weight": np.ones((4, 4), np.float32)}}  # fmt: skip
    folder = write_folder(tmp_path / "model", shards)
    succeed("prune", folder, tmp_path / "out", "--sparsity", 0.5)
    for file, arrays in shards.items():
        assert arrays_of(tmp_path / "out" / file).keys() == arrays.keys()


def test_companions_are_no_weights(model, tmp_path):
    shutil.copyfile(model / FIRST, model / "vocab.safetensors")
    (model / "tokenizer.json").write_text("{}")
    succeed("prune", model, tmp_path / "out", "--sparsity", 0.5)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {FIRST, SECOND, INDEX, "config.json", "tokenizer.json"}


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
