"""Checkpoints of every format, as the command line opens them."""

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import gradprune_jax as gp

pytest.importorskip("safetensors")

import safetensors.numpy

from gradprune_jax._cli import orbax_folder
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.faults import CheckpointError
from gradprune_jax._cli.plan import open_shapes

PARAMS = {
    "Dense_0": {
        "bias": np.arange(3, dtype=np.float32),
        "kernel": np.arange(12, dtype=np.float32).reshape(4, 3),
    },
    "value": {"kernel": np.ones((2, 2), np.float16)},
}
BFLOAT16 = PARAMS | {"half": {"kernel": np.ones((2, 2), jnp.bfloat16)}}


def flat(tree):
    return {"/".join(path): leaf for path, leaf in nn_flatten(tree)}


def nn_flatten(tree, above=()):
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from nn_flatten(node, (*above, key))
        else:
            yield (*above, key), node


def train_state(params):
    tx = optax.chain(optax.adam(0.1), gp.gradual_prune(gp.one_shot_schedule(0.5, 0)))
    return TrainState.create(
        apply_fn=None, params=jax.tree.map(jnp.asarray, params), tx=tx
    )


def save_orbax(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def save(folder, kind, params):
    """A checkpoint of parameters in one of the formats."""
    file = folder / "checkpoint"  # no ending: the contents tell the format
    match kind:
        case "orbax":
            save_orbax(file, params)
        case "orbax train state":
            save_orbax(file, train_state(params))
        case "orbax manager":
            with ocp.CheckpointManager(file) as manager:
                manager.save(100, args=ocp.args.StandardSave(train_state(params)))
            return file / "100"
        case "safetensors":
            safetensors.numpy.save_file(flat(params), file)
        case "sparse":
            gp_export().save_sparse(file, params)
        case "npz":
            with file.open("wb") as stream:
                np.savez_compressed(stream, **flat({"params": params, "step": 3}))
        case "msgpack":
            tree = {"params": params, "batch_stats": {"mean": np.zeros(3)}}
            file.write_bytes(flax.serialization.to_bytes(tree))
        case "msgpack train state":
            file.write_bytes(flax.serialization.to_bytes(train_state(params)))
    return file


def gp_export():
    from gradprune_jax import export

    return export


def assert_same(checkpoint, params):
    expected = flat(params)
    assert set(checkpoint.named) == set(expected)
    for name, array in checkpoint.named.items():
        read = array.read()
        assert (read.shape, read.dtype) == (array.spec.shape, array.spec.dtype)
        assert read.dtype == expected[name].dtype
        assert read.tobytes() == expected[name].tobytes()


@pytest.mark.parametrize(
    ("kind", "left_out"),
    [
        ("orbax", ()),
        ("orbax train state", ("opt_state", "step")),
        ("orbax manager", ("opt_state", "step")),
        ("safetensors", ()),
        ("sparse", ()),
        ("npz", ("step",)),
        ("msgpack", ("batch_stats",)),
        ("msgpack train state", ("opt_state",)),
    ],
)
def test_every_format_has_the_same_parameters(tmp_path, kind, left_out):
    params = PARAMS if kind == "npz" else BFLOAT16
    checkpoint = open_checkpoint(save(tmp_path, kind, params))
    assert checkpoint.left_out == left_out
    assert_same(checkpoint, params)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), checkpoint.shapes)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)


def test_small_arrays_are_restored_together_and_large_ones_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_folder, "_GROUP_BYTES", 3000)
    sizes = [100, 500, 10, 5000, 20, 1, 1]
    params = {f"l{i}": np.full(size, i, np.float32) for i, size in enumerate(sizes)}
    folder = save_orbax(tmp_path / "checkpoint", params | {"list": [params["l0"]]})
    restored = []
    restore = orbax_folder._restore
    monkeypatch.setattr(
        orbax_folder,
        "_restore",
        lambda folder, group: restored.append(group) or restore(folder, group),
    )
    assert_same(open_checkpoint(folder), params | {"list": {"0": params["l0"]}})
    assert restored == [(0, 1, 2), (3,), (4, 5, 6, 7)]


def test_boxes_are_no_level_of_a_path(tmp_path):
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    named = open_checkpoint(save_orbax(tmp_path / "nnx", nnx.state(model))).named
    assert set(named) == {"bias", "kernel"}
    module = nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("x",)))
    boxed = module.init(jax.random.key(0), jnp.ones((1, 4)))
    assert set(open_checkpoint(save_orbax(tmp_path / "linen", boxed)).named) == {
        *("bias", "kernel")
    }


def test_the_place_of_the_parameters_can_be_given(tmp_path):
    file = tmp_path / "model"
    twice = {"generator": {"params": PARAMS}, "critic": {"params": PARAMS}}
    file.write_bytes(flax.serialization.to_bytes(twice))
    with pytest.raises(CheckpointError, match="choose with --params") as error:
        open_checkpoint(file)
    assert "['critic/params', 'generator/params']" in str(error.value)
    assert_same(open_checkpoint(file, "critic/params"), PARAMS)
    assert (
        open_checkpoint(file, "critic/params").left_out == ("critic", "generator")[1:]
    )
    assert_same(open_checkpoint(file, "/"), twice)
    with pytest.raises(CheckpointError, match="no arrays below 'critc'"):
        open_checkpoint(file, "critc")
    moments = {"mu": {"params": PARAMS}}
    file.write_bytes(
        flax.serialization.to_bytes({"model": PARAMS, "opt_state": moments})
    )
    with pytest.raises(CheckpointError, match=r"of \['model', 'opt_state'\]"):
        open_checkpoint(file)
    assert_same(open_checkpoint(file, "model"), PARAMS)


def test_names_with_dots_are_paths_too(tmp_path):
    file = tmp_path / "model.safetensors"
    kernel = np.ones((3, 4), np.float32)
    safetensors.numpy.save_file({"layers.0.q_proj.weight": kernel}, file)
    checkpoint = open_checkpoint(file)
    assert list(checkpoint.arrays) == [("layers", "0", "q_proj", "weight")]
    assert list(checkpoint.named) == ["layers.0.q_proj.weight"]
    assert checkpoint.is_torch
    # A key that is called value is no box here.
    named = {"attn.value": kernel, "attn.key": kernel, "norm.value": kernel}
    safetensors.numpy.save_file(named, file, {"format": "pt"})
    assert set(open_checkpoint(file).named) == set(named)
    assert open_checkpoint(file).metadata == {"format": "pt"}


def test_lists_are_levels_too(tmp_path):
    file = tmp_path / "model"
    layers = [{"kernel": np.ones((2, 2))}, {"kernel": np.zeros((2, 2))}]
    tree = {"layers": layers, "pair": [np.ones(2), np.ones(3)]}
    file.write_bytes(flax.serialization.msgpack_serialize(tree))
    assert set(open_checkpoint(file).named) == {
        *("layers/0/kernel", "layers/1/kernel", "pair/0", "pair/1")
    }
    folder = save_orbax(tmp_path / "orbax", tree)
    assert set(open_checkpoint(folder).named) == set(open_checkpoint(file).named)


def test_keys_with_slashes_and_places_that_are_left_out(tmp_path):
    file = tmp_path / "model"
    state = {"params": {"a/b": {"kernel": np.ones(2)}}, "opt_state": {"mu": np.ones(2)}}
    file.write_bytes(flax.serialization.msgpack_serialize({"m/x": state}))
    checkpoint = open_checkpoint(file)
    assert list(checkpoint.arrays) == [("a/b", "kernel")]
    assert checkpoint.left_out == ("m/x/opt_state",)
    twice = {"a/b": np.ones(2), "a": {"b": np.ones(3)}}
    file.write_bytes(flax.serialization.msgpack_serialize(twice))
    with pytest.raises(CheckpointError, match="two arrays are called 'a/b'"):
        _ = open_checkpoint(file).named


def test_numpy_files_of_other_machines_and_with_words(tmp_path):
    file = tmp_path / "model.npz"
    kernel = np.arange(6.0).reshape(2, 3)
    np.savez(
        file,
        big=kernel.astype(">f4"),
        columns=np.asfortranarray(kernel),
        config="a word",
    )
    assert_same(
        open_checkpoint(file), {"big": kernel.astype("float32"), "columns": kernel}
    )


def test_damage_that_shows_when_arrays_are_read_names_the_file(tmp_path):
    sparse, zipped = tmp_path / "sparse", tmp_path / "zipped"
    gp_export().save_sparse(sparse, {"a": np.eye(64)})
    parts = safetensors.numpy.load_file(sparse)
    safetensors.numpy.save_file(parts | {"a.compressed": np.ones(3)}, sparse)
    with zipped.open("wb") as stream:
        np.savez(stream, a=np.arange(1000.0))
    content = bytearray(zipped.read_bytes())
    content[4000] ^= 1
    zipped.write_bytes(content)
    chunks = tmp_path / "chunks"
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(chunks, {"a": np.arange(1000.0)})
    (chunks / "a" / "0").write_bytes(b"no chunk")
    for file in (sparse, zipped, chunks):
        checkpoint = open_checkpoint(file)
        with pytest.raises(CheckpointError) as error:
            checkpoint.named["a"].read()
        assert str(error.value).startswith(f"{file}: ")
        assert str(error.value).count(f"{file}: ") == 1


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    file = tmp_path / "file"
    (tmp_path / "empty").mkdir()
    managed = tmp_path / "managed"
    with ocp.CheckpointManager(managed) as manager:
        for step in (20, 100):
            manager.save(step, args=ocp.args.StandardSave(PARAMS))
    several = tmp_path / "several"
    for name in "ab":
        save_orbax(several / name, PARAMS)
    broken = save_orbax(tmp_path / "broken", PARAMS)
    (broken / "_METADATA").write_text("{")
    for path, content, message in [
        (file, b"", "is empty"),
        (file, b"x" * 100, "none of an orbax folder"),
        (file, b"\1", "no tree of parameters"),
        (file, flax.serialization.to_bytes({"a": {"b": 1}}), "holds no arrays"),
        (tmp_path / "empty", None, "no checkpoint of orbax"),
        (managed, None, r"holds the steps \['20', '100'\]; choose one: .*100"),
        (several, None, r"holds the trees \['a', 'b'\]; choose one: "),
        (broken, None, "orbax cannot read it"),
    ]:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as error:
            open_checkpoint(path)
        assert str(error.value).startswith(f"{path}: ")
    with file.open("wb") as stream:
        np.savez(stream, half=np.ones(2, jnp.bfloat16))
    with pytest.raises(CheckpointError, match="'half' has dtype"):
        open_checkpoint(file)
    with file.open("wb") as stream:
        np.savez(stream, code=np.array([print], object))
    with pytest.raises(CheckpointError, match="objects are not unpickled"):
        open_checkpoint(file)


def test_shapes_are_read_from_json(tmp_path):
    file = tmp_path / "shapes.json"
    file.write_text(
        '{"a": {"kernel": [4, 3], "shape": [2]}, '
        '"b/kernel": {"shape": [], "dtype": "bfloat16"}}'
    )
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), open_shapes(file))
    assert shapes == {
        "a": {"kernel": ((4, 3), "float32"), "shape": ((2,), "float32")},
        "b": {"kernel": ((), "bfloat16")},
    }
    for text in (
        "{",
        "[1]",
        '{"a": 1}',
        '{"a": [-1]}',
        '{"a": [1.5]}',
        '{"a": [1e99]}',
    ):
        file.write_text(text)
        with pytest.raises(CheckpointError, match="no list of shapes") as error:
            open_shapes(file)
        assert str(file) in str(error.value)
    file.write_text('{"a": {"shape": [2], "dtype": "float31"}}')
    with pytest.raises(CheckpointError, match="float31"):
        open_shapes(file)
    file.write_text('{"a": [2], "a/b": [3]}')
    with pytest.raises(CheckpointError, match="'a/b' lies at or below"):
        open_shapes(file)
    orbax = save_orbax(tmp_path / "checkpoint", PARAMS)
    assert open_shapes(orbax)["Dense_0"]["kernel"].shape == (4, 3)
