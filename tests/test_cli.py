"""The console command: what it prints, writes and refuses."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

from click.testing import CliRunner

import gradprune_jax
from gradprune_jax import _cli
from gradprune_jax.demo import training

SMALL = ("--limit", "128", "--epochs", "2", "--model", "nnx", "--sparsity", "0.5")


def invoke(*arguments):
    return CliRunner().invoke(_cli.build(), [*map(str, arguments)])


@pytest.fixture
def no_training(monkeypatch):
    """Fails the test if anything is trained."""

    def train(*args, **kwargs):
        raise AssertionError("trained before checking")

    monkeypatch.setattr(training, "train", train)


def test_demo_writes_its_files_and_says_so(tmp_path):
    result = invoke("demo", *SMALL, "--out", tmp_path / "new" / "out")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "out"
    assert sorted(file.name for file in folder.iterdir()) == ["demo.json", "demo.png"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "demo.json").read_text())
    assert written["model"] == "nnx"
    assert len(written["curves"]["sparsity"]) == written["training"]["steps"] == 4
    assert written["pruned_weights"]
    assert "Not exactly +0.0 among them: 0." in result.stdout
    assert "dense1/kernel" in result.stdout
    for name in ("demo.png", "demo.json"):
        assert f"Wrote {folder / name}" in result.stdout
    assert "loss" in result.stderr
    assert "sparsity" in result.stderr


def test_json_is_all_that_stdout_gets_and_is_reproducible(tmp_path):
    arguments = ("demo", *SMALL, "--json", "--out", tmp_path)
    results = [invoke(*arguments, "--force") for _ in range(2)]
    first, second = (json.loads(result.stdout) for result in results)
    for outcome in (first, second):
        outcome["dense"].pop("seconds")
        outcome["pruned"].pop("seconds")
    assert first == second
    assert first["pruned"]["prunable_nonzero"] == first["pruned"]["prunable"] // 2
    assert first["pruned_weights_not_zero"] == 0


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_channels_are_pruned_cut_and_timed(tmp_path, api):
    arguments = ("--structure", "channels", "--out", tmp_path, "--force")
    result = invoke("demo", *SMALL, "--model", api, *arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "widths.png").read_bytes().startswith(b"\x89PNG")
    assert "ms, batch 64" in result.stdout
    measured = json.loads((tmp_path / "demo.json").read_text())["shrunk"]
    assert measured["widths"] == {
        "conv1/bias[0]": [32, 16],
        "conv2/bias[0]": [64, 32],
        "dense1/bias[0]": [256, 128],
    }
    assert measured["parameters"] == {"before": 824_970, "after": 207_178}
    assert measured["correct"]["after"] == measured["correct"]["before"]
    for times in measured["milliseconds"].values():
        assert min(times.values()) > 0


@pytest.mark.parametrize("sparsity", [0, 1])
def test_all_is_left_or_nothing(tmp_path, sparsity):
    limits = ("--limit", "1", "--epochs", "1")
    arguments = ("--json", "--out", tmp_path, "--sparsity", sparsity)
    result = invoke("demo", *limits, *arguments)
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert outcome["pruned_weights"] == sparsity * outcome["pruned"]["prunable"]


@pytest.mark.parametrize("name", ["demo.png", "demo.json"])
def test_demo_does_not_overwrite_without_force(tmp_path, no_training, name):
    (tmp_path / name).write_text("precious")
    result = invoke("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert name in result.stderr
    assert "--force" in result.stderr
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.5"], "1.5 is not in the range 0 to 1"),
        (["--sparsity", "-0.1"], "-0.1 is not in the range"),
        (["--sparsity", "nan"], "nan is not in the range"),
        (["--sparsity", "much"], "not a valid float"),
        (["--epochs", "0"], "0 is not in the range"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--model", "torch"], "torch"),
        (["--data-dir", "no/such/folder"], "no/such/folder"),
        (["--out", __file__], "is a file"),
        (["--colour"], "--colour"),
        (["extra"], "extra"),
    ],
)
def test_bad_usage_ends_with_status_2(no_training, arguments, message):
    result = invoke("demo", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_bad_data_ends_with_status_1_and_one_line(tmp_path, no_training):
    result = invoke("demo", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {tmp_path}: has neither train-images")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_ends_with_status_1(tmp_path, no_training):
    (tmp_path / "file").write_text("")
    result = invoke("demo", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_the_command_runs_as_a_process():
    for program in (
        ["-c", "from gradprune_jax._cli import main; main()"],
        ["-m", "gradprune_jax"],
    ):
        said = {
            option: subprocess.run(
                [sys.executable, *program, option],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in ("--version", "--help")
        }
        assert said["--version"] == f"gradprune_jax {gradprune_jax.__version__}\n"
        assert said["--help"].startswith("Usage: gradprune [OPTIONS] COMMAND")


@pytest.mark.parametrize("missing", ["click", "matplotlib", "rich", "safetensors"])
def test_without_the_extra_one_line_names_it(monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as caught:
        _cli.main()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert missing in message
    assert 'pip install "gradprune_jax[cli]"' in message
    assert message.count("\n") == 1


def test_another_import_error_is_not_taken_for_a_missing_extra(monkeypatch):
    def build():
        raise ImportError("broken", name="gradprune_jax.demo")

    monkeypatch.setattr(_cli.group, "build", build)
    with pytest.raises(ImportError, match="broken"):
        _cli.main()
