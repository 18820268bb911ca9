"""Sparse files: every array comes back to the bit, and none takes more than dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import gradprune_jax as gp

pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy

from gradprune_jax import export
from gradprune_jax._files import open_safetensors
from gradprune_jax.export import bitmask as _bitmask
from gradprune_jax.export import open as opening
from tests.sparse_arrays import assert_same_bits, make_array

DTYPES = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_array_comes_back_to_the_bit(tmp_path, dtype):
    shapes = [(), (0,), (3,), (70,), (5, 33), (1, 40), (4, 0, 3), (3, 3, 5, 17)]
    params = {
        f"layer{i}": {"kernel": make_array(shape, dtype, seed=i)}
        for i, shape in enumerate(shapes)
    }
    params["step"] = np.arange(3)
    file = tmp_path / "model.safetensors"
    export.save_sparse(file, params)
    loaded = export.load_sparse(file)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(assert_same_bits, loaded, params)
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_layout_is_that_of_compressed_tensors(tmp_path):
    params = {"a": {"kernel": make_array((6, 5, 19), "float32")}, "b": np.ones(3)}
    file = tmp_path / "model.safetensors"
    export.save_sparse(file, params)
    stored = safetensors.numpy.load_file(file)
    assert set(stored) == {
        "b",
        *(f"a/kernel.{part}" for part in _bitmask.Bitmask._fields),
    }
    array = params["a"]["kernel"]
    live = array.view(np.uint32) != 0
    assert_same_bits(stored["a/kernel.compressed"], array[live])
    packed = np.packbits(live, axis=-1, bitorder="little")
    np.testing.assert_array_equal(stored["a/kernel.bitmask"], packed)
    np.testing.assert_array_equal(stored["a/kernel.shape"], array.shape)
    counts = live.sum(-1)
    np.testing.assert_array_equal(
        stored["a/kernel.row_offsets"], np.cumsum(counts, 0) - counts
    )
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    assert metadata["gradprune_jax.version"] == gp.__version__
    assert metadata["gradprune_jax.layout"] == "sparse-bitmask"


def test_dense_leaves_stay_dense(tmp_path):
    dense = np.ones((8, 64), np.float32)
    half = np.where(np.arange(512).reshape(8, 64) % 2, dense, 0)
    for name, max_density, expected in [("a", 0.9, 5), ("b", 0.4, 2)]:
        file = tmp_path / name
        export.save_sparse(file, {"x": dense, "y": half}, max_density=max_density)
        assert len(safetensors.numpy.load_file(file)) == expected


def dense_nbytes(folder, params):
    """The bytes of a plain safetensors file."""
    safetensors.numpy.save_file(params, folder / "plain")
    return (folder / "plain").stat().st_size


def test_no_file_is_larger_than_a_dense_one(tmp_path):
    rng = np.random.default_rng(0)
    sizes = []
    for columns in (1, 8, 40, 120, 200, 1000):
        for count in (0, 1, 2, 20):
            live = rng.random((count, 3, columns)) < 0.1
            weights = np.where(live, 1, 0).astype(np.float32)
            params = {f"layer{i}.weight": each for i, each in enumerate(weights)}
            params["dense"] = np.ones(9, np.float32)
            out = tmp_path / "out"
            export.save_sparse(out, params, overwrite=True)
            plain = dense_nbytes(tmp_path, params)
            sizes.append((out.stat().st_size, plain))
            loaded = export.load_sparse(out)
            assert sum(each.nbytes for each in loaded.values()) == sum(
                each.nbytes for each in params.values()
            )
    assert all(size <= plain for size, plain in sizes)
    smaller = [size < plain for size, plain in sizes]
    assert 0.2 < np.mean(smaller) < 0.8


@pytest.mark.parametrize("count", [1, 20])
def test_names_of_any_alphabet_make_no_file_larger(tmp_path, count):
    for live in (0, 1):  # sparse, and dense
        weights = np.full((3, 200), live, np.float32)
        params = {f"層{i}/κernel": weights for i in range(count)}
        export.save_sparse(tmp_path / "out", params, overwrite=True)
        plain = dense_nbytes(tmp_path, params)
        size = (tmp_path / "out").stat().st_size
        assert size == plain if live else size < plain
        loaded = safetensors.numpy.load_file(tmp_path / "out")
        assert "層0/κernel" + (".bitmask" if not live else "") in loaded
        assert_same_bits(export.load_sparse(tmp_path / "out")["層0"]["κernel"], weights)


def test_each_array_is_sparse_only_if_that_is_smaller(tmp_path):
    """Its entries in the header count."""
    large = np.zeros((64, 640), np.float32)
    for columns in range(60, 200, 4):
        small = np.zeros((1, columns), np.float32)
        file = tmp_path / f"{columns}"
        export.save_sparse(file, {"large": large, "small": small})
        stored = safetensors.numpy.load_file(file)
        assert "large.bitmask" in stored
        if "small.bitmask" in stored:
            break
    alone = tmp_path / "alone"
    export.save_sparse(alone, {"large": large})
    assert 60 < columns < 120
    # What the last array adds is less than it would be dense.
    assert file.stat().st_size - alone.stat().st_size < small.nbytes + 80


def test_a_file_without_sparse_arrays_is_plain(tmp_path):
    params = {"a": np.ones((3, 4), np.float32), "b": np.arange(3)}
    export.save_sparse(tmp_path / "sparse", params)
    plain = dense_nbytes(tmp_path, params)
    assert (tmp_path / "sparse").stat().st_size == plain
    # Unless its names could be taken for parts.
    params = {"a.compressed": np.ones(3), "a.bitmask": np.ones(3)}
    export.save_sparse(tmp_path / "parts", params)
    loaded = export.load_sparse(tmp_path / "parts")
    jax.tree.map(assert_same_bits, loaded, params)


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_opening_takes_time_linear_in_the_number_of_arrays(tmp_path, monkeypatch):
    kernel = np.zeros((1, 400), np.float32)
    file = tmp_path / "model"
    export.save_sparse(file, {f"{i}": kernel for i in range(200)})
    arrays, metadata = open_safetensors(file)
    named = {Name(name): array for name, array in arrays.items()}
    for known in (metadata, {}):
        monkeypatch.setattr(
            opening, "open_safetensors", lambda _, known=known: (named, known)
        )
        Name.compared = 0
        assert len(export.open_sparse(file)[0]) == 200
        assert Name.compared <= 20 * len(named)


def test_models_of_flax_come_back_as_they_were(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(40, 30, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    module = nn.Dense(
        30, kernel_init=nn.with_partitioning(nn.initializers.normal(), (None, "x"))
    )
    boxed = module.init(jax.random.key(0), jnp.ones((1, 40)))["params"]
    for i, params in enumerate([state, boxed]):
        pruned, _ = gp.prune(params, 0.9)
        file = tmp_path / f"{i}"
        export.save_sparse(file, pruned)
        loaded = export.load_sparse(file, like=params)
        assert jax.tree.structure(loaded) == jax.tree.structure(pruned)
        jax.tree.map(assert_same_bits, loaded, pruned)


def test_arrays_go_where_those_before_them_were(tmp_path):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("x"))
    kernel = make_array((16, 40), "float32")
    params = {"a": jax.device_put(kernel, split), "b": kernel.astype(float)}
    export.save_sparse(tmp_path / "model", params)
    loaded = export.load_sparse(tmp_path / "model", like=params)
    assert loaded["a"].sharding == split
    jax.tree.map(assert_same_bits, loaded, params)


def test_what_jax_would_narrow_stays_in_numpy(tmp_path):
    params = {"count": np.array([2**40]), "scale": np.float64(0.1), "k": jnp.ones(2)}
    export.save_sparse(tmp_path / "model", params)
    shapes = {
        name: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
        for name, leaf in params.items()
    }
    for like in (params, shapes):
        loaded = export.load_sparse(tmp_path / "model", like=like)
        jax.tree.map(assert_same_bits, loaded, params)
        assert isinstance(loaded["k"], jax.Array)


def test_arrays_are_opened_without_being_read(tmp_path):
    params = {"a": {"kernel": make_array((33, 40), "bfloat16")}, "b": np.ones((3, 4))}
    file, copy = tmp_path / "model", tmp_path / "copy"
    export.save_sparse(file, params, metadata={"step": "7"})
    arrays, metadata = export.open_sparse(str(file))
    assert metadata == {"step": "7"}
    assert {name: (each.shape, each.dtype) for name, each in arrays.items()} == {
        "a/kernel": ((33, 40), jnp.bfloat16),
        "b": ((3, 4), np.float64),
    }
    assert_same_bits(np.asarray(arrays["a/kernel"]), params["a"]["kernel"])
    assert np.asarray(arrays["b"], np.float32).dtype == np.float32
    # They are parameters for all that reads leaves one at a time.
    assert str(export.storage_report(arrays)) == str(export.storage_report(params))
    export.save_sparse(copy, arrays, metadata=metadata)
    assert copy.read_bytes() == file.read_bytes()
    dead = {"a/kernel": np.float64([[1e-310, 0], [0, 0]])}
    export.save_sparse(copy, dead, overwrite=True)
    arrays, _ = export.open_sparse(copy)
    assert {k: v.tolist() for k, v in gp.dead_channels(arrays).items()} == {
        "a/kernel": [1]
    }
