"""What no sparse file can hold is refused by name, and nothing is half-written."""

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy

from gradprune_jax import export
from gradprune_jax.export import bitmask as _bitmask
from tests.sparse_arrays import make_array


def test_a_name_that_is_no_text_is_refused(tmp_path):
    params = {"a\ud800": np.zeros((8, 99), np.float32)}
    with pytest.raises(ValueError, match=r"'a\\ud800\S*' has a lone surrogate"):
        export.save_sparse(tmp_path / "out", params)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    file = tmp_path / "model.safetensors"
    kernel = np.zeros((4, 70), np.float32)
    export.save_sparse(file, {"a": {"kernel": kernel}})
    for like, message in [
        ({"b": kernel}, r"lacks \['b'\]"),
        ({}, r"has \['a/kernel'\] besides"),
        ({"a": {"kernel": kernel[:2]}}, "'a/kernel' is float32 of shape"),
        ({"a": {"kernel": kernel.astype(np.float16)}}, "parameters have float16"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            export.load_sparse(file, like=like)
        assert str(file) in str(error.value)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.save_sparse(file, {"a": kernel})
    export.save_sparse(file, {"a": kernel}, overwrite=True)
    assert list(export.load_sparse(file)) == ["a"]
    for params, fields, message in [
        ({"a": kernel}, dict(max_density=2), "max_density is 2"),
        ({"a": kernel}, dict(metadata={"gradprune_jax.x": ""}), "'gradprune_jax.x'"),
        ({"a": jax.random.key(0)}, {}, "'a' is PRNGKeyArray"),
        ({"a": "text"}, {}, "'a' is str"),
        ({"__metadata__": kernel}, {}, "'__metadata__' is a name of safetensors' own"),
        ({"a": kernel}, dict(metadata={"a": "\ud800"}), "a lone surrogate"),
        (jax.eval_shape(lambda: {"a": kernel}), {}, "'a' is a shape without values"),
        ({"a": kernel, "a.shape": kernel[0, :2]}, {}, "'a.shape'"),
    ]:
        with pytest.raises(ValueError, match=message):
            export.save_sparse(tmp_path / "new", params, **fields)
    assert not (tmp_path / "new").exists()


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    good = tmp_path / "good"
    export.save_sparse(good, {"a": {"kernel": make_array((16, 70), "float32")}})
    content = good.read_bytes()
    parts = safetensors.numpy.load_file(good)
    file = tmp_path / "bad"
    for bad in (content[:-1], content[:40], b"", b"PK\3\4 is no model", b"\0" * 64):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match="no safetensors file") as error:
            export.load_sparse(file)
        assert str(file) in str(error.value)
    name = "a/kernel"
    for change, message in [
        ({"bitmask": parts[f"{name}.bitmask"][:, :8]}, "its bitmask is"),
        ({"bitmask": ~parts[f"{name}.bitmask"]}, "beyond the end of a row"),
        ({"compressed": parts[f"{name}.compressed"][1:]}, "values for"),
        ({"shape": np.array([-1, 70])}, "its shape is"),
        ({"shape": np.array([16.0, 70.0])}, "no list of integers"),
        ({"shape": np.array([0, 2**60])}, "its bitmask is"),
        ({"row_offsets": None}, f"lacks {name}.row_offsets"),
    ]:
        damaged = parts | {f"{name}.{part}": array for part, array in change.items()}
        damaged = {key: array for key, array in damaged.items() if array is not None}
        safetensors.numpy.save_file(damaged, file)
        with pytest.raises(ValueError, match=message) as error:
            export.load_sparse(file)
        assert f"{file}: {name!r}" in str(error.value)
    for dtype in (np.float64, np.float32, np.float16):
        named = {"x": np.ones(3, np.float32), "x/y": np.ones(2, dtype)}
        safetensors.numpy.save_file(named, file)
        with pytest.raises(ValueError, match="lies above or below another array"):
            export.load_sparse(file)


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "model"
    export.save_sparse(file, {"a": np.ones(3)})
    before = file.read_bytes()

    def fail(array):
        raise KeyboardInterrupt

    monkeypatch.setattr(_bitmask, "compress", fail)
    with pytest.raises(KeyboardInterrupt):
        export.save_sparse(file, {"a": np.zeros(99)}, overwrite=True)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_metadata_that_is_no_text_is_refused(tmp_path):
    for metadata in ({"epoch": 3}, {3: "epoch"}):
        with pytest.raises(ValueError, match="must be strings"):
            export.save_sparse(tmp_path / "a", {"a": np.eye(64)}, metadata=metadata)
    assert not list(tmp_path.iterdir())
