"""Arguments and files at fault: a status, one line, and nothing is changed."""

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy

from gradprune_jax import export
from tests.commands import invoke, save_checkpoint


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["prune", "IN", "OUT"], 2, "Give --sparsity"),
        (["prune", "IN", "OUT", "--sparsity", "1.5"], 2, "1.5 is not in the range"),
        (["prune", "IN", "OUT", "--structure", "4:2"], 2, "keep"),
        (["prune", "IN", "OUT", "--structure", "star"], 2, "'star'"),
        (["prune", "IN", "OUT", "--structure", "2:4", "--pool", "max"], 2, "--pool"),
        (["prune", "IN", "OUT", "--sparsity", "0.5", "--axis", "1"], 2, "--axis"),
        (
            ["prune", "IN", "OUT", "--sparsity", "0.5", "--min-density", "0.1"],
            2,
            "min_density",
        ),
        (["prune", "IN", "OUT", "--sparsity", "0.5", "--seed", "1"], 2, "--seed"),
        (
            ["prune", "IN", "OUT", "--sparsity=0.5", "--score=random", "--seed=-1"],
            2,
            "seed is -1",
        ),
        (["prune", "IN", "OUT", "--sparsity", "0.5", "--where", "("], 2, "where"),
        (["prune", "IN", "OUT", "--sparsity", "0.5", "--where", "x"], 1, "closest"),
        (["prune", "IN", "IN", "--sparsity", "0.5"], 2, "--force"),
        (["prune", "missing", "OUT", "--sparsity", "0.5"], 2, "missing"),
        (["prune", "IN", "no/such/folder", "--sparsity", "0.5"], 1, "no/such"),
        (["pack", "IN", "IN"], 2, "--force"),
        (["pack", "IN", "OUT", "--params", "model"], 1, "no arrays below 'model'"),
        (["pack", "BAD", "OUT"], 1, "no safetensors file"),
        (["pack", "METADATA", "OUT"], 1, "'__metadata__' is a name of safetensors'"),
        (["plan", "SHAPES", "--sparsity", "0.5", "--params", "a"], 2, "--params"),
        (["plan", "SHAPES", "--sparsity", "0.5"], 1, "the dtype of 'a' is None"),
        (["unpack", "IN", "IN"], 2, "--force"),
        (["report", "BAD"], 1, "no safetensors file"),
        (["report", "IN", "--pattern", "2x4"], 2, "'2x4' is not like 2:4"),
        (["report", "IN", "--pattern", "4:4"], 2, "keep"),
        (["report", "IN", "--plot", "IN"], 2, "--force"),
        (["report", "IN", "--plot", "x.wav"], 2, "wav"),
        (["diff", "IN", "BAD"], 1, "no safetensors file"),
        (["report", "IN", "--plot", "no/such/folder.png"], 2, "no folder"),
        (["report", "DAMAGED"], 1, "'a' is damaged"),
        (
            ["prune", "DAMAGED", "OUT", "--sparsity", "0.5", "--where", "a"],
            1,
            "damaged",
        ),
        (["pack", "DAMAGED", "OUT"], 1, "'a' is damaged"),
        (["unpack", "DAMAGED", "OUT"], 1, "'a' is damaged"),
        (["diff", "DAMAGED", "DAMAGED"], 1, "'a' is damaged"),
        (["diff", "INTEGERS", "INTEGERS"], 1, "no floating parameter"),
        (["report", "INTEGERS"], 1, "no floating parameters"),
        (["prune", "WIDE", "OUT", "--sparsity", "0.5", "--where", "a"], 1, "'b' is"),
    ],
)
def test_faults_end_with_a_status_and_no_file(tmp_path, arguments, status, message):
    checkpoint = save_checkpoint(tmp_path)
    (tmp_path / "bad").write_bytes(b"\1" + bytes(7) + b"{bad")
    export.save_sparse(tmp_path / "damaged", {"a": np.eye(64, dtype=np.float32)})
    parts = safetensors.numpy.load_file(tmp_path / "damaged")
    parts["a.compressed"] = parts["a.compressed"][1:]
    safetensors.numpy.save_file(parts, tmp_path / "damaged")
    safetensors.numpy.save_file({"a": np.arange(3)}, tmp_path / "integers")
    np.savez(tmp_path / "wide.npz", a=np.eye(4), b=np.eye(4, dtype=np.complex128))
    np.savez(tmp_path / "metadata.npz", __metadata__=np.eye(4))
    (tmp_path / "shapes.json").write_text('{"a": {"shape": [4], "dtype": null}}')
    names = ("OUT", "BAD", "DAMAGED", "INTEGERS")
    places = {name: tmp_path / name.lower() for name in names}
    places |= {"IN": checkpoint, "WIDE": tmp_path / "wide.npz"}
    places |= {
        "METADATA": tmp_path / "metadata.npz",
        "SHAPES": tmp_path / "shapes.json",
    }
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    result = invoke(*(places.get(each, each) for each in arguments))
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert result.stdout == ""
    if status == 1:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
