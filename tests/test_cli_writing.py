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
from gradprune_jax._files import Spec, atomic, replacing
from gradprune_jax._files import safetensors as own_safetensors

KERNEL = np.eye(64, dtype=np.float32)
WRITING = [
    ["prune", "--sparsity", "0.5"],
    ["pack"],
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


@pytest.mark.parametrize("command", WRITING)
def test_a_command_replaces_nothing_that_appears(
    checkpoint, outside, monkeypatch, command
):
    out = outside / "out.png"
    place = atomic._place

    def appear(temporary, file, overwrite):
        out.write_text("theirs")
        place(temporary, file, overwrite)

    monkeypatch.setattr(atomic, "_place", appear)
    result = write_to(command, checkpoint, out)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {out}: has appeared")
    assert out.read_text() == "theirs"
    assert os.listdir(outside) == [out.name]
    monkeypatch.undo()
    assert write_to(command, checkpoint, out).exit_code == 2
    assert write_to(command, checkpoint, out, "--force").exit_code == 0
    assert out.read_bytes() != b"theirs"


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
    assert result.exit_code == 1
    assert result.stderr == f"error: {out}: file too large.\n"
    assert os.listdir(outside) == []


@pytest.mark.parametrize("command", [each for each in WRITING if "--plot" not in each])
def test_a_folder_that_cannot_be_written_is_named(checkpoint, outside, command):
    (outside / "file").write_text("")
    for place in ("none/out", "file/out"):
        result = write_to(command, checkpoint, outside / place)
        assert result.exit_code == 1
        assert (result.stderr.count("\n"), result.stdout) == (1, "")
        assert "gradprune-" not in result.stderr
        assert str(outside / place) in result.stderr
        assert "Errno" not in result.stderr
        folder = (outside / place).parent
        said = f"error: {outside / place}: {folder} is no folder; make it first.\n"
        assert result.stderr == said
    with pytest.raises(OSError, match="none"), replacing(outside / "none2" / "out"):
        pass


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="is of Linux")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Errors of a disk name no file, and it is not the one that is being written."""
    unreadable = pathlib.Path("/proc/self/mem")
    spec = Spec((4,), np.dtype(np.float32))
    with (
        pytest.raises(OSError, match=f"Input/output error: '{unreadable}'"),
        replacing(tmp_path / "out") as temporary,
    ):
        read = ((name, own_safetensors._read(unreadable, 0, spec)) for name in "a")
        own_safetensors.write_safetensors(temporary, {"a": spec}, read, {})
    assert os.listdir(tmp_path) == []


INTERRUPTED = """
import atexit, signal, time
from gradprune_jax import _cli
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored, and so it stays
from gradprune_jax.export import save
def write(file, *_):
    file.write_bytes(bytes(1000))
    print("writing", flush=True)
    while True:  # one long sleep would go on if a signal came just before it
        time.sleep(0.1)
save.write_safetensors = write
atexit.register(print, "Python is finalised")
_cli.main()
"""


def test_a_terminated_run_leaves_nothing(checkpoint, outside):
    """Nor does it finalise Python, which crashes where XLA's threads still compute."""
    runs = {}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        arguments = ["pack", checkpoint, outside / f"{number}"]
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
