"""Damaged and hostile files: status 1, one line that names the file, no harm done."""

import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pytest.importorskip("zstandard")

import orbax.checkpoint as ocp
import safetensors.numpy

from gradprune_jax import export
from gradprune_jax._cli import files
from gradprune_jax._cli.checkpoints import open_checkpoint
from tests.commands import invoke

PROGRAM = "from gradprune_jax._cli import main; main()"
KERNEL = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
# Every file that is refused, if not by all of these.
ANY = ("report", "prune", "prune global", "pack", "unpack", "plan", "diff")
READING = ("report", "prune", "pack", "unpack", "diff")
NESTING = ("prune", "prune global", "plan")


def run(command, file, out):
    """A command with all that it needs, such as "prune global"."""
    name, *kind = command.split()
    rule = ["--sparsity", 0.5, "--where", ".*", *(["--allocation", *kind] * len(kind))]
    more = {"prune": [out, *rule], "plan": rule, "diff": [file]}
    packing = [out] if "pack" in name else []
    return invoke(name, file, *more.get(name, packing))


def npy(shape, descr="'<f4'", header=None, data=bytes(64)):
    """An array as NumPy stores it, with anything for its shape."""
    text = header or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data


def npz(content, compression=zipfile.ZIP_STORED, damage=None, name="a/kernel"):
    def write(file):
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr(f"{name}.npy", content)
        if damage is not None:
            content_ = bytearray(file.read_bytes())
            place = int(damage * len(content_))
            content_[place : place + 8] = b"\xff" * 8
            file.write_bytes(content_)

    return write


def header(text, data=b""):
    """A safetensors file of any header."""
    text = text if isinstance(text, str) else json.dumps(text)
    return lambda file: file.write_bytes(
        len(text).to_bytes(8, "little") + text.encode() + data
    )


def entry(shape, dtype="F32", begin=0, end=64):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def packed(shape, bits):
    """A packed array that claims a shape, with bits of a shape."""
    parts = {
        "a.compressed": entry([0], end=0),
        "a.bitmask": entry(bits, "U8", end=int(np.prod(bits))),
        "a.shape": entry([len(shape)], "I64", 8, 8 + 8 * len(shape)),
        "a.row_offsets": entry([0], "I64", 8 + 8 * len(shape), 8 + 8 * len(shape)),
    }
    parts["a.padding"] = entry([8 - int(np.prod(bits))], "U8", int(np.prod(bits)), 8)
    return header(parts, bytes(8) + np.array(shape, np.int64).tobytes())


NORMAL = npy((100, 100), data=KERNEL.tobytes())
SLASHES = "/".join(["a"] * 3001)


@pytest.mark.parametrize(
    ("write", "commands", "message"),
    [
        (npz(npy(f"({2**60}, 4)")), ANY, "which no array has"),
        (npz(npy(f"(0, {2**60})")), ANY, "which no array has"),
        (npz(npy(f"({10**99},)")), ANY, "which no array has"),
        (npz(npy(f"({2**40},)")), ANY, "and it has 64"),
        (npz(npy("(True, 4)")), ANY, "integers of 0 or more"),
        (npz(npy("(-4, 4)")), ANY, "integers of 0 or more"),
        (npz(npy("((4,), 4)")), ANY, "'a/kernel' is damaged"),
        (npz(npy("(" * 3000 + ")" * 3000)), ANY, "'a/kernel' is damaged"),
        (npz(npy("", header="{{[]: 1}: 2}\n")), ANY, "'a/kernel' is damaged"),
        (npz(npy("", header="{'descr': '''\n")), ANY, "'a/kernel' is damaged"),
        (npz(b"garbage"), ANY, "'a/kernel' is damaged"),
        (npz(npy("(4,)", "[('x', '<f4')]")), ANY, "'a/kernel' is an array of records"),
        (npz(npy("(4,)", "('<f4', (2,))")), ANY, "'a/kernel' is an array of records"),
        (npz(npy("(4,)", "'<M8[s]'")), ANY, "which is no number"),
        (npz(npy("(4,)", "'|V2'")), ANY, "no bfloat16"),
        (npz(NORMAL, zipfile.ZIP_LZMA, 0.5), READING, "'a/kernel' is damaged"),
        (npz(NORMAL, zipfile.ZIP_LZMA, 0.002), ANY, "'a/kernel' is damaged"),
        (npz(NORMAL, zipfile.ZIP_BZIP2, 0.5), ANY, "'a/kernel' is damaged"),
        (npz(NORMAL, zipfile.ZIP_DEFLATED, 0.5), READING, "'a/kernel' is damaged"),
        (npz(npy("(4, 4)"), name=SLASHES), NESTING, "a path of 3,001 keys"),
        (header({SLASHES: entry([4, 4])}, bytes(64)), NESTING, "of 3,001 keys"),
        (
            header({SLASHES.replace("/", "."): entry([4, 4])}, bytes(64)),
            NESTING,
            "of 3,001 keys",
        ),
        (header('{"a":' + "[" * 10**5), ANY, "damaged"),
        (
            header(
                {
                    "__metadata__": {"gradprune_jax.sparse": "[" * 10**5},
                    "a": entry([4, 4]),
                },
                bytes(64),
            ),
            ANY,
            "no JSON list of names",
        ),
        (header({"a": entry([0, 2**60], end=0)}), ANY, "which no array has"),
        (header({"a": entry([1] * 100, end=4)}, bytes(4)), ANY, "which no array has"),
        (packed([0, 2**60], [0, 1]), ANY, "its bitmask is"),
        (packed([0, 2**60], [0, 2**57]), ANY, "which no array has"),
        (packed([2**62, 2**62], [1, 1]), ANY, "its bitmask is"),
        (
            lambda file: file.write_bytes(b"\x81\xa1a" * 900 + b"\x80"),
            ANY,
            "holds no arrays",
        ),
        (lambda file: file.write_bytes(b"\x81\xa1a" * 5000), ANY, "damaged"),
    ],
)
def test_bad_data_is_one_line_that_names_the_file(tmp_path, write, commands, message):
    file, out = tmp_path / "file", tmp_path / "out"
    write(file)
    for command in commands:
        result = run(command, file, out)
        assert result.exit_code == 1, (command, result.output)
        assert result.stderr.startswith(f"error: {file}: "), (command, result.stderr)
        assert message in result.stderr, command
        assert (result.stderr.count("\n"), result.stdout) == (1, "")
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "content",
    [
        npy("(4,)", "'" + "x" * 5000 + "'"),
        npy("(" + "4, " * 2000 + ")"),
        npy("(4,)", str([(f"field{i}", "<f4") for i in range(200)])),
        npy("", header="x" * 30000),
    ],
)
def test_a_long_header_is_not_said_whole(tmp_path, content):
    npz(content)(tmp_path / "file")
    result = run("report", tmp_path / "file", None)
    assert result.exit_code == 1
    assert "'a/kernel'" in result.stderr
    assert len(result.stderr) < len(str(tmp_path)) + 200


def test_a_file_of_rules_that_is_no_text_is_said_to_be_none(tmp_path):
    file, shapes = tmp_path / "file.npz", tmp_path / "shapes.json"
    np.savez(file, a=KERNEL)
    shapes.write_text('{"a": [4, 4]}')
    result = invoke("plan", shapes, "--rules", file)
    assert result.exit_code == 1
    assert result.stderr == f"error: {file}: the rules are no JSON text: not UTF-8.\n"


@pytest.mark.skipif(np.longdouble(0).itemsize == 8, reason="has no wider floats")
def test_wide_numbers_are_refused_under_every_allocation(tmp_path):
    file, out = tmp_path / "file.npz", tmp_path / "out"
    np.savez(file, **{"a/kernel": np.eye(4, dtype=np.longdouble)})
    for command in ("prune", "prune global", "pack"):
        result = run(command, file, out)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), command
        assert f"{file}: 'a/kernel' is float" in result.stderr
    assert run("report", file, out).exit_code == 0


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, json.dumps({SLASHES: [4]}), '{"a": [0, 1e9]}'],
)
def test_json_that_is_no_list_of_shapes_or_rules(tmp_path, text):
    file, shapes = tmp_path / "file.json", tmp_path / "shapes.json"
    shapes.write_text('{"a": [4, 4]}')
    file.write_text(text)
    for arguments in ([file, "--sparsity", 0.5], [shapes, "--rules", file]):
        result = invoke("plan", *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert result.stderr.startswith(f"error: {file}: ")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (3, 0, 2), (0, 2**40)])
def test_arrays_of_nothing_go_through_every_command(tmp_path, shape):
    file, out = tmp_path / "file", tmp_path / "out"
    text = {"a": entry(list(shape), end=0), "b": entry([4, 4])}
    header(text, np.eye(4, dtype=np.float32).tobytes())(file)
    for command in ANY:
        result = run(command, file, out)
        assert result.exit_code == 0, (command, result.output, result.exception)
        out.unlink(missing_ok=True)
    measured = json.loads(invoke("report", file, "--json").stdout)["parameters"]
    assert [(each["size"], each["dead_channels"]) for each in measured] == [
        (0, None),
        (16, 0),
    ]


def test_a_damaged_orbax_folder_is_one_line(tmp_path):
    folder = tmp_path / "checkpoint"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {f"l{i}": np.ones((40, 40)) for i in range(12)})
    for manifest in folder.rglob("manifest.ocdbt"):
        manifest.write_bytes(b"no manifest")
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, "report", folder],
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"error: {folder}: orbax cannot read it")
    assert finished.stderr.count("\n") == 1


def test_orbax_names_the_folder_as_it_was_given(tmp_path, monkeypatch):
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(tmp_path / "chunks", {"a": np.arange(1000.0)})
    (tmp_path / "chunks" / "a" / "0").write_bytes(b"no chunk")
    monkeypatch.chdir(tmp_path)
    result = invoke("report", "chunks")
    assert result.stderr.startswith("error: chunks: orbax cannot read it")
    assert str(tmp_path / "chunks: ") not in result.stderr


def test_terminals_get_no_control_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGE", 0)  # the progress bar too
    file, other = tmp_path / "\x1b[2Jfile", tmp_path / "other"
    name, escaped = "\x1b[31ma\x9b\u202e\n/kernel", r"\x1b[31ma\x9b\u202e\n/kernel"
    kernel = np.eye(8, dtype=np.float32)
    safetensors.numpy.save_file({name: kernel, "b": kernel}, file)
    safetensors.numpy.save_file({"b": kernel}, other)
    out = tmp_path / "out\x1b[2J"
    picture = tmp_path / "picture.svg"
    for arguments in [
        ["report", file, "--plot", picture],
        ["prune", file, out, "--sparsity", 0.5],
        ["pack", file, out],
        ["pack", file, out, "--force", "--params", "none"],
        ["unpack", file, out, "--force"],
        ["plan", file, "--sparsity", 0.5],
        ["diff", file, file],
        ["diff", file, other],
        ["diff", other, tmp_path],
    ]:
        result = invoke(*arguments)
        for sign in "\x9b\u202e":
            assert sign not in result.output
        # rich moves the cursor to redraw its bar, which is no terminal here.
        assert "\x1b" not in result.output, arguments
    for command in ("report", "plan"):
        more = ["--sparsity", 0.5] if command == "plan" else []
        assert escaped in invoke(command, file, *more).stdout
    assert "\x1b" not in picture.read_text()
    named = json.loads(invoke("report", file, "--json").stdout)["parameters"]
    assert {each["path"] for each in named} == {name, "b"}
    assert escaped in str(export.storage_report({name: kernel}, compress=False))


def test_devices_and_pipes_are_refused_by_name(tmp_path):
    fifo, shapes = tmp_path / "fifo", tmp_path / "shapes.json"
    os.mkfifo(fifo)
    shapes.write_text('{"a/kernel": [4, 4]}')
    for device in ("/dev/zero", "/dev/null", fifo):
        for command in ANY:
            result = run(command, device, tmp_path / "out")
            assert result.exit_code == 2
            assert f"{device} is a device or a pipe" in result.stderr
        result = invoke("plan", shapes, "--rules", device)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{device} is a device or a pipe" in result.stderr


def test_devices_and_pipes_are_not_replaced(tmp_path):
    """By root they could be, `/dev/null` too."""
    file, fifo = tmp_path / "file", tmp_path / "fifo"
    safetensors.numpy.save_file({"a": KERNEL}, file)
    os.mkfifo(fifo)
    for command in (["prune", file, fifo, "--sparsity", 0.5], ["unpack", file, fifo]):
        result = invoke(*command, "--force")
        assert result.exit_code == 1
        assert result.stderr == f"error: {fifo}: is no file, and is not replaced.\n"
        assert fifo.is_fifo()


def test_an_archive_is_indexed_once(tmp_path):
    file = tmp_path / "model.npz"
    np.savez(file, a=KERNEL, b=KERNEL[:2])
    checkpoint = open_checkpoint(file)
    file.unlink()  # open as long as its arrays are wanted
    np.testing.assert_array_equal(checkpoint.named["a"].read(), KERNEL)
    np.testing.assert_array_equal(checkpoint.named["b"].read(), KERNEL[:2])


def test_a_safetensors_file_may_end_like_an_archive(tmp_path):
    file, archive = tmp_path / "model", tmp_path / "archive"
    npz(NORMAL)(archive)
    end = np.frombuffer(archive.read_bytes()[-22:], np.uint8)
    safetensors.numpy.save_file({"a": end}, file)
    assert zipfile.is_zipfile(file)
    np.testing.assert_array_equal(open_checkpoint(file).named["a"].read(), end)


def test_a_file_is_not_taken_for_named_that_begins_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    npz(b"garbage", name="x")(tmp_path / "is")
    assert invoke("report", "is").stderr.startswith("error: is: 'x' is damaged")
    (tmp_path / "is").write_bytes(b"")
    assert invoke("report", "is").stderr == "error: is: is empty.\n"


def test_a_sparsity_that_is_not_that_of_the_pattern_is_refused(tmp_path):
    file, out = tmp_path / "file", tmp_path / "out"
    safetensors.numpy.save_file({"a/kernel": KERNEL}, file)
    options = ["--structure", "2:4", "--sparsity"]
    result = invoke("prune", file, out, *options, 0.9)
    assert result.exit_code == 2
    assert "--sparsity is 0.9 with NM(keep=2, of=4" in result.stderr
    assert "give 0.5, or" in result.stderr
    assert "schedule" not in result.stderr
    assert not out.exists()
    assert invoke("prune", file, out, *options, 0.5).exit_code == 0
