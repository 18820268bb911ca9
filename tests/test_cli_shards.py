"""Hugging Face's folders: several safetensors files with their index, in and out."""

import json
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
from tests.commands import succeed
from tests.shards import (
    FIRST,
    INDEX,
    METADATA,
    SECOND,
    arrays_of,
    make_shards,
    same_bytes,
    write_folder,
)


@pytest.fixture
def model(tmp_path):
    return write_folder(tmp_path / "model", make_shards(), total_parameters=7)


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


def test_names_of_torch_may_go_on_from_others(tmp_path):
    """As bitsandbytes writes them."""
    arrays = {
        "l.weight": np.arange(16, dtype=np.float32).reshape(4, 4),
        "l.weight.absmax": np.ones(4, np.float32),
    }
    folder = write_folder(tmp_path / "model", {FIRST: arrays})
    for allocation in ("uniform", "global"):
        options = ("--sparsity", 0.5, "--allocation", allocation, "--force")
        succeed("prune", folder, tmp_path / "out", *options)
        pruned = arrays_of(tmp_path / "out" / FIRST)
        assert (pruned["l.weight"] != 0).sum() == 8
        assert same_bytes(pruned["l.weight.absmax"], arrays["l.weight.absmax"])
    said = json.loads(succeed("plan", folder, "--sparsity", 0.5, "--json"))
    assert {each["path"]: each["kept"] for each in said["parameters"]} == {
        "l/weight": 8,
        "l/weight/absmax": 4,
    }


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
