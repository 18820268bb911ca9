"""The documentation: every public name, and every command, is true."""

import pathlib
import re
import shlex
import types
from collections.abc import Callable

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
    if isinstance(value, Callable | types.UnionType) and not name.startswith("_")
}


def test_every_public_name_has_its_place_in_the_api():
    names = re.findall(r"^::: (.*)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(PUBLIC)
    assert all(value.__doc__ for value in PUBLIC.values())


@pytest.mark.parametrize(
    ("page", "checkpoint", "written"),
    [
        (
            DOCS / "command_line.md",
            "model.npz",
            "blocks.safetensors dense.safetensors nm.safetensors packed.safetensors "
            "pruned.safetensors report.png",
        ),
        (
            DOCS.parent / "README.md",
            "checkpoint",
            "packed.safetensors pruned.safetensors report.png",
        ),
    ],
)
def test_commands_run_as_they_are_written(
    tmp_path, monkeypatch, page, checkpoint, written
):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("gradprune ")]
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {
        "Dense_0/kernel": rng.normal(size=(64, 32)).astype(np.float32),
        "Dense_0/bias": np.zeros(32, np.float32),
    }
    with open(checkpoint, "wb") as file:
        np.savez(file, **arrays)
    for shapes in re.findall(r"^# (\{.*\})$", page.read_text(), re.MULTILINE):
        pathlib.Path("shapes.json").write_text(shapes)
    given = {file.name for file in tmp_path.iterdir()}
    for _, *arguments in commands:
        result = CliRunner().invoke(_cli.build(), arguments)
        assert result.exit_code == 0, (arguments, result.output)
    found = {file.name for file in tmp_path.iterdir()}
    assert found == given | set(written.split())
