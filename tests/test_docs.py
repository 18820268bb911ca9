"""The documentation: every public name, and every command, is true."""

import ast
import inspect
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

import gradprune_jax

pytest.importorskip("click")
pytest.importorskip("keras")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

from click.testing import CliRunner

from gradprune_jax import _cli, export, keras, primitives, report

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (gradprune_jax, report, export, primitives, keras)
    for name, value in vars(module).items()
    if isinstance(value, Callable | types.UnionType) and not name.startswith("_")
}


def written(source):
    """The docstrings of a module by name, as they are written in its source.

    A dataclass and a NamedTuple always have a `__doc__`: Python makes one up.
    """
    body = ast.parse(source).body
    found = {}
    for node, below in itertools.zip_longest(body, body[1:]):
        match node, below:
            case ast.ClassDef() | ast.FunctionDef(), _:
                found[node.name] = ast.get_docstring(node)
            case (
                ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(ast.Constant(str(text))),
            ):
                found[name] = text
    return found


def fields(value):
    """The names that a docstring must explain: of arguments, or of fields."""
    if isinstance(value, types.UnionType):
        return []
    if inspect.isclass(value):
        made_by = vars(value).keys() & {"__init__", "__new__"}
        if not made_by:
            return []
        value = value.__init__ if "__init__" in made_by else value.__new__
    names = inspect.signature(value).parameters
    return [name for name in names if name not in ("self", "_cls")]


def test_every_public_name_has_its_place_in_the_api():
    names = re.findall(r"^::: (.*)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(PUBLIC)


@pytest.mark.parametrize("public", PUBLIC)
def test_every_public_name_has_a_docstring_that_explains_its_arguments(public):
    name, value = public.rpartition(".")[2], PUBLIC[public]
    if isinstance(value, types.UnionType):  # does not know where it was written
        files = pathlib.Path(gradprune_jax.__file__).parent.rglob("*.py")
    else:
        files = [pathlib.Path(inspect.getsourcefile(value))]
    [docstring] = filter(None, (written(file.read_text()).get(name) for file in files))
    explained = re.findall(r"^ +\**(\w+): ", inspect.cleandoc(docstring), re.MULTILINE)
    assert set(fields(value)) <= set(explained)


def test_public_modules_are_there_after_one_import():
    program = "import gradprune_jax as gp; print(gp.report.tabulate, gp.export, gp.a)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "module 'gradprune_jax' has no attribute 'a'" in ran.stderr, ran.stderr


def test_a_docstring_that_python_makes_up_is_none():
    source = "@dataclass\nclass A:\n    x: int\nB = int\nC = str\n'C is str.'"
    assert written(source) == {"A": None, "C": "C is str."}


@pytest.mark.parametrize(
    ("page", "checkpoint", "written"),
    [
        (
            DOCS / "command_line.md",
            "model.npz",
            "blocks.safetensors chance.safetensors dense.safetensors nm.safetensors "
            "packed.safetensors pruned.safetensors report.png small.safetensors",
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
