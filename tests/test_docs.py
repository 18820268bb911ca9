"""The documentation: every public name, and every command, is true."""

import pathlib
import re
import shlex

import numpy as np
import pytest

import gradprune_jax

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

from click.testing import CliRunner

from gradprune_jax import _cli, export, report

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (gradprune_jax, report, export)
    for name, value in vars(module).items()
    if callable(value) and not name.startswith("_")
}


def test_every_public_name_has_its_place_in_the_api():
    names = re.findall(r"^::: (.*)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(PUBLIC)
    assert all(value.__doc__ for value in PUBLIC.values())


def test_the_commands_run_as_they_are_written(tmp_path, monkeypatch):
    text = (DOCS / "command_line.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {
        "Dense_0/kernel": rng.normal(size=(64, 32)).astype(np.float32),
        "Dense_0/bias": np.zeros(32, np.float32),
    }
    np.savez("model.npz", **arrays)
    for program, *arguments in filter(None, commands):
        assert program == "gradprune"
        result = CliRunner().invoke(_cli.build(), arguments)
        assert result.exit_code == 0, (arguments, result.output)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("blocks.safetensors", "dense.safetensors", "model.npz", "nm.safetensors"),
        *("packed.safetensors", "pruned.safetensors", "report.png"),
    ]
