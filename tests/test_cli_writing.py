"""Nothing is overwritten unasked or left behind, and errors name the user's file."""

import os
import pathlib
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import safetensors.numpy
from click.testing import CliRunner

from gradprune_jax import _cli, export
from gradprune_jax._files import atomic as _files
from gradprune_jax._files import safetensors as _safetensors
from gradprune_jax._files.atomic import making, replacing, replacing_all

KERNEL = np.eye(64, dtype=np.float32)
WRITING = [
    ["prune", "--sparsity", "0.5"],
    ["pack"],
    ["pack", "--layout", "compressed-tensors"],
    ["unpack"],
    ["report", "--plot"],
]


def invoke(*arguments):
    return CliRunner().invoke(_cli.build(), [*map(str, arguments)])


def write_to(command, checkpoint, out, *more):
    name, *options = command
    places = [*options, out] if name == "report" else [out, *options]
    return invoke(name, checkpoint, *places, *more)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    safetensors.numpy.save_file({"a/kernel": KERNEL}, folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def without_links(monkeypatch):
    def link(source, target):
        raise PermissionError(1, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("name", ["file", "link"])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, name, has_links):
    if not has_links:
        without_links(monkeypatch)
    file = tmp_path / name
    with (
        pytest.raises(FileExistsError, match="has appeared in the meantime") as error,
        replacing(file, overwrite=False) as temporary,
    ):
        temporary.write_text("ours")
        if name == "file":
            file.write_text("theirs")
        else:
            file.symlink_to("nowhere")
    assert str(error.value).startswith(f"{file}: ")
    assert os.readlink(file) == "nowhere" if name == "link" else file.read_text()
    assert os.listdir(tmp_path) == [name]
    file.unlink()
    with replacing(file, overwrite=False) as temporary:
        temporary.write_text("ours")
    assert (file.read_text(), os.listdir(tmp_path)) == ("ours", [name])
    mode = os.umask(0)
    os.umask(mode)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mode


def test_of_two_files_none_is_left_if_one_has_appeared(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    with (
        pytest.raises(FileExistsError, match="b: has appeared"),
        replacing_all(files, overwrite=False) as temporaries,
    ):
        for each in temporaries:
            each.write_text("ours")
        files[1].write_text("theirs")
    assert os.listdir(tmp_path) == ["b"]
    assert files[1].read_text() == "theirs"


@pytest.mark.parametrize("command", WRITING)
def test_a_command_replaces_nothing_that_appears(
    checkpoint, outside, monkeypatch, command
):
    out = outside / "out.png"
    appears = out / "config.json" if "--layout" in command else out
    enter = _files._temporary

    def appear(file):
        if appears != out:
            out.mkdir(exist_ok=True)
        appears.write_text("theirs")
        return enter(file)

    monkeypatch.setattr(_files, "_temporary", appear)
    result = write_to(command, checkpoint, out)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {appears}: has appeared")
    assert appears.read_text() == "theirs"
    assert [file.name for file in outside.rglob("*") if file.is_file()] == [
        appears.name
    ]
    monkeypatch.undo()
    assert write_to(command, checkpoint, out).exit_code == 2
    assert write_to(command, checkpoint, out, "--force").exit_code == 0
    assert appears.read_bytes() != b"theirs"


@pytest.mark.parametrize("command", WRITING)
def test_a_link_to_nothing_is_not_replaced(checkpoint, outside, command):
    out = outside / "out.png"
    out.symlink_to("nowhere")
    result = write_to(command, checkpoint, out)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert os.listdir(outside) == ["out.png"]
    with pytest.raises(FileExistsError, match="exists already"):
        export.save_sparse(out, {"a": KERNEL})


@pytest.mark.parametrize("command", WRITING)
def test_names_may_be_as_long_as_the_file_system_allows(checkpoint, outside, command):
    out = outside / ("x" * 251 + ".png")
    assert write_to(command, checkpoint, out).exit_code == 0
    assert write_to(command, checkpoint, out, "--force").exit_code == 0
    assert os.listdir(outside) == [out.name]


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_names_the_file_and_leaves_nothing(checkpoint, outside, command):
    out = outside / "out.png"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        result = write_to(command, checkpoint, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    written = out / "config.json" if "--layout" in command else out
    assert result.exit_code == 1
    assert result.stderr == f"error: {written}: file too large.\n"
    assert os.listdir(outside) == []


@pytest.mark.parametrize("command", [each for each in WRITING if "--plot" not in each])
def test_a_folder_that_cannot_be_written_is_named(checkpoint, outside, command):
    (outside / "file").write_text("")
    for place in ("none/out", "file/out"):
        result = write_to(command, checkpoint, outside / place)
        if "--layout" in command and place == "none/out":
            assert result.exit_code == 0
            continue
        assert result.exit_code == 1
        assert (result.stderr.count("\n"), result.stdout) == (1, "")
        assert "gradprune-" not in result.stderr
        assert str(outside / place) in result.stderr
        assert "Errno" not in result.stderr
        if "--layout" not in command:
            folder = (outside / place).parent
            said = f"error: {outside / place}: {folder} is no folder; make it first.\n"
            assert result.stderr == said
    with pytest.raises(OSError, match="none"), replacing(outside / "none2" / "out"):
        pass


def test_folders_that_were_made_are_gone_after_a_failure(tmp_path):
    (tmp_path / "old").mkdir()
    for folder in ("old", "old/new/newer", "new"):
        with pytest.raises(KeyboardInterrupt), making(tmp_path / folder):
            assert (tmp_path / folder).is_dir()
            raise KeyboardInterrupt
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["old"]
    with pytest.raises(KeyboardInterrupt), making(tmp_path / "new"):
        (tmp_path / "new" / "theirs").write_text("")
        raise KeyboardInterrupt
    assert (tmp_path / "new" / "theirs").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="is of Linux")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Errors of a disk name no file, and it is not the one that is being written."""
    unreadable = pathlib.Path("/proc/self/mem")
    spec = _safetensors.Spec((4,), np.dtype(np.float32))
    with (
        pytest.raises(OSError, match=f"Input/output error: '{unreadable}'"),
        replacing(tmp_path / "out") as temporary,
    ):
        read = ((name, _safetensors._read(unreadable, 0, spec)) for name in "a")
        _safetensors.write(temporary, {"a": spec}, read, {})
    assert os.listdir(tmp_path) == []


INTERRUPTED = """
import atexit, time
from gradprune_jax import _cli
from gradprune_jax._files import safetensors as _safetensors
def write(file, *_):
    file.write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(60)
_safetensors.write = write
atexit.register(print, "Python is finalised")
_cli.main()
"""


def test_a_terminated_run_leaves_nothing(checkpoint, outside):
    """Nor does it finalise Python, which crashes where XLA's threads still compute."""
    runs = {}
    for number, layout in [
        (signal.SIGTERM, "sparse-bitmask"),
        (signal.SIGHUP, "compressed-tensors"),
        (signal.SIGINT, "compressed-tensors"),
    ]:
        arguments = ["pack", checkpoint, outside / f"{number}", "--layout", layout]
        runs[number] = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for number, process in runs.items():
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        said = process.communicate(timeout=30)
        assert (process.returncode, said) == (128 + number, ("", ""))
    assert os.listdir(outside) == []


def test_two_runs_at_once_write_one_file(checkpoint, outside):
    """Threads have one process: their temporary files are not the same."""
    out = outside / "out"
    with replacing(out) as first, replacing(out) as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert pathlib.Path(out).read_text() == "1"
    assert os.listdir(outside) == ["out"]
