"""The commands on checkpoints: plan, report, prune, pack, unpack, diff."""

import json
import os
import subprocess
import sys

import jax
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
from gradprune_jax._cli import files
from tests.commands import PARAMS, invoke, save_checkpoint, succeed
from tests.sparse_arrays import assert_same_bits


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--sparsity", "0.9"], dict(sparsity=0.9)),
        (["--structure", "2:4"], dict(sparsity=0.5, structure=gp.NM(2, 4))),
        (
            ["--structure", "1:4", "--axis", "0", "--where", "head/kernel"],
            dict(sparsity=0.75, structure=gp.NM(1, 4, axis=0), where="head/kernel"),
        ),
        (
            ["--structure", "4x2", "--pool", "max", "--sparsity", "0.5"],
            dict(sparsity=0.5, structure=gp.Block((4, 2), pool="max")),
        ),
        (
            ["--structure", "channel", "--axis", "-2", "--sparsity", "0.25"],
            dict(sparsity=0.25, structure=gp.Channel(axis=-2)),
        ),
        (
            ["--allocation", "global", "--min-density", "0.1", "--sparsity", "0.9"],
            dict(sparsity=0.9, allocation="global", min_density=0.1),
        ),
        (
            ["--allocation", "erk", "--sparsity", "0.8"],
            dict(sparsity=0.8, allocation="erk"),
        ),
        (
            ["--score", "random", "--seed", "3", "--sparsity", "0.8"],
            dict(sparsity=0.8, score=gp.Random(3)),
        ),
        (
            ["--stack-axis", "0", "--sparsity", "0.8", "--where", "conv/kernel"],
            dict(sparsity=0.8, stack_axis=0, where="conv/kernel"),
        ),
    ],
)
def test_prune_is_that_of_the_library(tmp_path, checkpoint, options, fields):
    out = tmp_path / "pruned.safetensors"
    summary = json.loads(succeed("prune", checkpoint, out, "--json", *options))
    expected, _ = gp.prune(PARAMS, **fields)
    jax.tree.map(assert_same_bits, export.load_sparse(out), expected)
    counts = {entry["path"]: entry["nonzero"] for entry in summary["parameters"]}
    assert counts["conv/kernel"] == np.count_nonzero(expected["conv"]["kernel"])
    assert summary["total"]["size"] == 576 + 10 + 640 + 3


def test_wide_weights_are_ranked_as_they_are(tmp_path):
    # In float32 all are equal, and the first would be kept.
    kernel = 1 + np.arange(8.0).reshape(2, 4) * 1e-12
    source, out = tmp_path / "in.npz", tmp_path / "out"
    np.savez(source, **{"a/kernel": kernel})
    table = succeed("prune", source, out, "--sparsity", 0.5)
    assert "50.00 %" in table
    expected = np.where(kernel >= kernel[1, 0], kernel, 0)
    np.testing.assert_array_equal(export.load_sparse(out)["a"]["kernel"], expected)


def test_pack_and_unpack_are_each_other_s_inverse(tmp_path, checkpoint):
    pruned, packed, dense = (tmp_path / name for name in "abc")
    succeed("prune", checkpoint, pruned, "--sparsity", 0.9)
    said = succeed("pack", pruned, packed)
    assert f"Wrote {packed}: {packed.stat().st_size:,} bytes" in said
    assert "conv/kernel.bitmask" in safetensors.numpy.load_file(packed)
    succeed("unpack", packed, dense)
    assert dense.read_bytes() == pruned.read_bytes()
    jax.tree.map(
        assert_same_bits, export.load_sparse(packed), export.load_sparse(pruned)
    )
    summary = json.loads(succeed("pack", pruned, packed, "--json", "--force"))
    assert summary["bytes"] == packed.stat().st_size
    assert summary["dense_bytes"] == pruned.stat().st_size


def test_plan_is_that_of_the_library(tmp_path, checkpoint):
    shapes = tmp_path / "shapes.json"
    shapes.write_text('{"head": {"kernel": [64, 10], "bias": [10]}}')
    rules = [
        gp.Rule(None, where="head/bias"),
        gp.Rule(gp.polynomial_schedule(0.75, 10, 50, every=20), structure=gp.NM(1, 4)),
    ]
    file = tmp_path / "rules.json"
    file.write_text(gp.rules_to_json(rules))
    table = succeed("plan", shapes, "--rules", file, "--total-steps", 60)
    head = {"kernel": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
    assert table == f"{gp.plan(rules, {'head': head}, total_steps=60)}\n"
    planned = json.loads(succeed("plan", checkpoint, "--sparsity", "0.9", "--json"))
    kept = {leaf["path"]: leaf["kept"] for leaf in planned["parameters"]}
    assert kept == {
        "conv/kernel": 58,
        "head/bias": 10,
        "head/kernel": 64,
        "steps": 3,
    }
    for arguments, status, message in [
        (["--rules", file, "--total-steps", 50], 1, "would never happen"),
        (["--rules", file, "--sparsity", "0.5"], 2, "--sparsity does not go with"),
        (["--rules", checkpoint], 1, str(checkpoint)),
        (["--sparsity", "0.5", "--where", "heat/.*"], 1, "closest paths"),
        ([], 2, "Give --sparsity"),
    ]:
        result = invoke("plan", shapes, *arguments)
        assert (result.exit_code, result.stdout) == (status, "")
        assert message in result.stderr


def test_report_measures_every_parameter(tmp_path, checkpoint):
    pruned, picture = tmp_path / "pruned", tmp_path / "report.svg"
    options = ("--structure", "2:4", "--where", "head/kernel")
    succeed("prune", checkpoint, pruned, *options)
    params = export.load_sparse(pruned)
    params["conv"]["kernel"][..., 3:5] = 0
    export.save_sparse(pruned, params, overwrite=True)
    text = succeed("report", pruned, "--plot", picture)
    for wanted in ("head/kernel", "50.00 %", "100.0 %", "bit mask", "dense, zstd"):
        assert wanted in text
    assert "<svg" in picture.read_text()
    measured = json.loads(succeed("report", pruned, "--json", "--no-compress"))
    conv, bias, head = measured["parameters"]
    assert (conv["dead_channels"], bias["dead_channels"]) == (2, None)
    assert (head["in_pattern"], bias["in_pattern"]) == (1.0, None)
    assert 0 < conv["in_pattern"] < 0.2
    storage = export.storage_report(params, compress=False)
    assert measured["total"]["bytes"] == storage.total
    assert head["bytes"] == storage.leaves[2].nbytes
    assert measured["compressed_bytes"] == {"gzip": None, "zstd": None}
    assert [each["path"] for each in measured["parameters"]] == [
        *("conv/kernel", "head/bias", "head/kernel")
    ]


def test_diff_counts_what_both_keep(tmp_path, checkpoint):
    first, second = tmp_path / "first", tmp_path / "second"
    kernel = np.array([[1, 0, 2, 0]], np.float32)
    export.save_sparse(first, {"a": kernel, "b": kernel, "only": kernel})
    export.save_sparse(second, {"a": kernel[:, ::-1].copy(), "b": 3 * kernel})
    result = json.loads(succeed("diff", first, second, "--json"))
    assert [(row["both"], row["overlap"]) for row in result["parameters"]] == [
        (0, 0.0),
        (2, 1.0),
    ]
    assert result["total"]["overlap"] == pytest.approx(2 / 6)
    assert result["only"] == {str(first): ["only"], str(second): []}
    text = succeed("diff", first, second)
    assert "33.33 %" in text
    assert f"Only in {first}: only" in text
    assert invoke("diff", first, checkpoint).exit_code == 1
    export.save_sparse(second, {"a": kernel[:, :2].copy()}, overwrite=True)
    assert "'a' has shape (1, 2)" in invoke("diff", first, second).stderr


def test_force_overwrites_even_the_input(tmp_path, checkpoint):
    succeed("prune", checkpoint, checkpoint, "--sparsity", 0.9, "--force")
    expected, _ = gp.prune(PARAMS, 0.9)
    jax.tree.map(assert_same_bits, export.load_sparse(checkpoint), expected)
    succeed("pack", checkpoint, checkpoint, "--force")
    jax.tree.map(assert_same_bits, export.load_sparse(checkpoint), expected)


def test_large_files_have_a_progress_bar(tmp_path, checkpoint, monkeypatch):
    assert invoke("pack", checkpoint, tmp_path / "small").stderr == ""
    monkeypatch.setattr(files, "_LARGE", 0)
    result = invoke("pack", checkpoint, tmp_path / "large")
    assert "model.safetensors" in result.stderr
    assert "bytes" in result.stderr or "kB" in result.stderr


def test_what_is_left_out_is_said(tmp_path):
    source = tmp_path / "model.npz"
    np.savez(source, **{"params/a/kernel": np.ones((4, 4)), "batch_stats/mean": 1.0})
    said = succeed("pack", source, tmp_path / "packed")
    assert "batch_stats" in said
    succeed("pack", source, tmp_path / "whole", "--params", "/")
    assert set(export.load_sparse(tmp_path / "whole")) == {"params", "batch_stats"}


def test_the_shell_completes_commands_and_options():
    program = "from gradprune_jax._cli import main; main()"
    environment = {
        **os.environ,
        "_GRADPRUNE_COMPLETE": "bash_complete",
        "COMP_WORDS": "gradprune p",
        "COMP_CWORD": "1",
    }
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert finished.stdout.split() == ["plain,pack", "plain,plan", "plain,prune"]


def test_axes_of_torch_are_those_of_torch(tmp_path):
    source, out = tmp_path / "torch", tmp_path / "out"
    weight = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    safetensors.numpy.save_file({"l.weight": weight}, source, {"format": "pt"})
    succeed("prune", source, out, "--structure", "2:4", "--where", "l/weight")
    stored = safetensors.numpy.load_file(out)["l.weight"]
    assert ((stored != 0).reshape(12, 2, 4).sum(axis=2) == 2).all()
    with safetensors.safe_open(out, framework="numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    summary = json.loads(succeed("report", out, "--json", "--no-compress"))
    assert summary["parameters"][0]["in_pattern"] == 1
    channels = ("--structure", "channel", "--sparsity", 0.5)
    succeed("prune", source, out, *channels, "--force")
    stored = safetensors.numpy.load_file(out)["l.weight"]
    assert (stored == 0).all(axis=1).sum() == 6
    summary = json.loads(succeed("report", out, "--json", "--no-compress"))
    assert summary["parameters"][0]["dead_channels"] == 6


def test_axes_of_torch_in_numpys_archives(tmp_path):
    source, out = tmp_path / "torch.npz", tmp_path / "out"
    weight = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    np.savez(source, **{"l.weight": weight})
    succeed("prune", source, out, "--structure", "2:4", "--where", "l/weight")
    stored = safetensors.numpy.load_file(out)["l.weight"]
    assert ((stored != 0).reshape(12, 2, 4).sum(axis=2) == 2).all()


def test_negative_zeros_are_said(tmp_path):
    file = tmp_path / "model"
    safetensors.numpy.save_file({"a": np.float32([[-0.0, 0, 1, 2]])}, file)
    assert "1 zeros are -0.0" in succeed("report", file)
    (row,) = json.loads(succeed("report", file, "--json"))["parameters"]
    assert (row["nonzero"], row["negative_zeros"]) == (2, 1)


def test_plan_finds_the_parameters_where_it_is_told(tmp_path):
    source = tmp_path / "model.npz"
    kernel = np.ones((4, 4), np.float32)
    np.savez(source, **{"a/params/x/kernel": kernel, "b/params/y/kernel": kernel})
    assert "--params" in invoke("plan", source, "--sparsity", 0.5).stderr
    assert "y/kernel" in succeed(
        "plan", source, "--sparsity", 0.5, "--params", "b/params"
    )


def test_a_budget_in_place_of_a_sparsity(checkpoint, tmp_path):
    out = tmp_path / "pruned"
    said = json.loads(succeed("prune", checkpoint, out, "--budget", 300, "--json"))
    floating = [e for e in said["parameters"] if e["path"] != "steps"]
    assert 295 < sum(each["nonzero"] for each in floating) <= 300
    planned = json.loads(succeed("plan", checkpoint, "--budget", 300, "--json"))
    assert sum(e["kept"] for e in planned["parameters"] if e["path"] != "steps") <= 300
    options = ("--budget", 1500, "--layout", "bitmask")
    succeed("prune", checkpoint, out, *options, "--force")
    sizes = json.loads(succeed("report", out, "--json", "--no-compress"))
    assert sizes["total"]["bytes"]["bitmask"] <= 1500
    for bad, words in (
        (("--budget", 3, "--sparsity", 0.5), "does not go with --sparsity"),
        (("--layout", "csr", "--sparsity", 0.5), "--layout does not go"),
        (("--budget", 3, "--structure", "2:4"), "--budget does not go"),
    ):
        result = invoke("prune", checkpoint, tmp_path / "other", *bad)
        assert result.exit_code == 2
        assert words in result.stderr
    result = invoke("prune", checkpoint, tmp_path / "other", "--budget", 3)
    assert result.exit_code == 1
    assert "still has 10" in result.stderr
