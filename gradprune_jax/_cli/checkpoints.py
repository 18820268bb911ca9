"""Checkpoints of every common format, opened without reading their arrays.

A format is told by what a file holds, not by its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import mmap
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gradprune_jax._cli import orbax_folder
from gradprune_jax._files.safetensors import Spec, StoredArray, checked_shape, shortened
from gradprune_jax.export.load import open_sparse

Path = tuple[str, ...]

# The weights in a folder such as `pack --layout compressed-tensors` writes.
_MODEL = "model.safetensors"

# What damaged data makes of this module and NumPy; all that other readers raise is
# made a ValueError where they are called.
_READ_ERRORS = (ValueError, OSError, MemoryError, OverflowError, RecursionError)

# Deeper trees are no model's, and too deep for recursion.
_DEPTH = 200

# Where an optimizer keeps what has the parameters' paths, but is none of them.
_OPTIMIZER_STATE = "opt_state"


class CheckpointError(ValueError):
    """A file that cannot be used: which one, why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The parameters of a checkpoint.

    Attributes:
      file: the file or folder.
      arrays: the parameters by path, in the order of a tree of dicts; read one by one.
      left_out: the places nearest to the root where other arrays are.
      is_torch: whether names and axes are PyTorch's: keys joined by dots, (out, in).
      metadata: what a safetensors file says besides, without this library's own.
    """

    file: pathlib.Path
    arrays: dict[Path, StoredArray]
    left_out: tuple[str, ...] = ()
    is_torch: bool = False
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def named(self) -> dict[str, StoredArray]:
        """The parameters by name."""
        separator = "." if self.is_torch else "/"
        named: dict[str, StoredArray] = {}
        for path, array in self.arrays.items():
            name = separator.join(path)
            if name in named:
                raise CheckpointError(
                    f"{self.file}: two arrays are called {name!r}; rename one."
                )
            named[name] = array
        return named

    @property
    def shapes(self) -> dict[str, Any]:
        """The tree of their shapes, as `jax.eval_shape` gives them."""
        return nested(
            self.file,
            {
                path: jax.ShapeDtypeStruct(each.spec.shape, each.spec.dtype)
                for path, each in self.arrays.items()
            },
        )


def open_checkpoint(file: pathlib.Path, params: str | None = None) -> Checkpoint:
    """Opens an orbax folder, or a safetensors, npz or Flax msgpack file.

    Args:
      file: the file or folder.
      params: where the parameters are in it, keys joined by `/`; `"/"` is all of
        it. None is the key "params" nearest to the root, outside an optimizer's state;
        without one, all.

    Returns:
      The parameters.

    Raises:
      CheckpointError: if it is of no known format, damaged, or it is not plain where
        its parameters are.
      OSError: if it cannot be read.
    """
    with blaming(file, _READ_ERRORS):
        arrays, is_torch, metadata = _open(file)
    prefix = _find_parameters(file, arrays) if params is None else _keys(params)
    own = {
        path: StoredArray(array.spec, functools.partial(_read, file, array))
        for path, array in sorted(_below(file, arrays, prefix).items())
    }
    left_out = {
        path[: _shared(path, prefix) + 1]
        for path in arrays
        if path[: len(prefix)] != prefix
    }
    names = tuple(sorted(map("/".join, left_out)))
    return Checkpoint(file, own, names, is_torch, metadata)


@contextlib.contextmanager
def blaming(
    file: pathlib.Path, errors: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """Turns errors into one that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{file}: is nested too deeply.") from None
    except errors as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # names its file
        message = _message(error)
        is_named = message.startswith((f"{file}: ", f"{file / _MODEL}: "))
        raise CheckpointError(message if is_named else f"{file}: {message}") from None


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read(file: pathlib.Path, array: StoredArray) -> np.ndarray:
    with blaming(file, _READ_ERRORS):
        return array.read()


def _open(
    file: pathlib.Path,
) -> tuple[dict[Path, StoredArray], bool, Mapping[str, str]]:
    """All arrays of a file by path, whether they are PyTorch's, and its metadata."""
    if file.is_dir() and (file / _MODEL).is_file():
        file = file / _MODEL
    if file.is_dir():
        return _without_boxes(orbax_folder.open_folder(file)), False, {}
    if not _begins_like_safetensors(file):
        # Not before, because a safetensors file can end like a zip archive by chance.
        if zipfile.is_zipfile(file):
            return _open_npz(file), False, {}
        return _without_boxes(_open_msgpack(file)), False, {}
    named, metadata = open_sparse(file)
    is_torch = any("." in name for name in named) and not any(
        "/" in name for name in named
    )
    separator = "." if is_torch else "/"
    foreign = {
        key: text
        for key, text in metadata.items()
        if not key.startswith("gradprune_jax.")
    }
    arrays = {tuple(name.split(separator)): named[name] for name in named}
    return arrays, is_torch, foreign


def nested(file: pathlib.Path, leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if len(path) > _DEPTH:
            raise CheckpointError(
                f"{file}: {'/'.join(path[:4])!r}... is a path of {len(path):,} keys; "
                f"it must be at most {_DEPTH}."
            )
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or path[-1] in node:
            raise CheckpointError(
                f"{file}: {'/'.join(path)!r} lies at or below another array."
            )
        node[path[-1]] = leaf
    return tree


def _begins_like_safetensors(file: pathlib.Path) -> bool:
    """Whether a header of JSON stands where the format wants it."""
    with file.open("rb") as stream:
        length, brace = stream.read(8), stream.read(1)
    if not length:
        raise ValueError("is empty.")
    return brace == b"{" and int.from_bytes(length, "little") < 2**32


def _open_npz(file: pathlib.Path) -> dict[Path, StoredArray]:
    """The arrays of a NumPy archive, by their headers; nothing is unpickled."""
    arrays = {}
    try:
        # Open as long as its arrays are wanted: its index is read once.
        archive = zipfile.ZipFile(file)
    except Exception as error:
        raise ValueError(f"is a damaged zip archive: {_message(error)}.") from None
    members = [name for name in archive.namelist() if name.endswith(".npy")]
    if not members:
        raise ValueError("is a zip archive without NumPy arrays.")
    for member in members:
        name = member.removesuffix(".npy")
        shape, dtype, place = _npz_header(archive, member, name)
        if dtype.kind in "US":
            continue  # a word about the run is no parameter
        _check_npz_dtype(name, dtype)
        spec = Spec(checked_shape(name, shape), dtype.newbyteorder("="))
        held = archive.getinfo(member).file_size - place
        if held < spec.nbytes:
            raise ValueError(
                f"{name!r} is damaged: {spec.shape} of {dtype} are {spec.nbytes:,} "
                f"bytes, and it has {held:,}."
            )
        read = functools.partial(_read_npz, archive, member, name, spec.dtype)
        arrays[tuple(name.split("/"))] = StoredArray(spec, read)
    return arrays


def _check_npz_dtype(name: str, dtype: np.dtype) -> None:
    """Refuses what is no array of numbers."""
    if dtype.kind in "biufc":
        return
    if dtype.names is not None or dtype.subdtype is not None:
        raise ValueError(
            f"{name!r} is an array of records, {shortened(dtype)}; save each field as "
            "an array of its own."
        )
    reason = {
        "V": "; NumPy's archives hold no bfloat16 and no 8-bit floats. Save it as "
        "safetensors.",
        "O": ", and objects are not unpickled. Save it as numbers.",
    }.get(dtype.kind, ", which is no number; leave it out.")
    raise ValueError(f"{name!r} has dtype {dtype}{reason}")


def _npz_header(
    archive: zipfile.ZipFile, member: str, name: str
) -> tuple[tuple[int, ...], np.dtype, int]:
    """What an array's header says it is, and the place of its data after it."""
    with _unpacking(name), archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        return shape, dtype, stream.tell()


def _read_npz(
    archive: zipfile.ZipFile, member: str, name: str, dtype: np.dtype
) -> np.ndarray:
    with _unpacking(name), archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return np.asarray(array, dtype, order="C")


@contextlib.contextmanager
def _unpacking(name: str) -> Iterator[None]:
    """Names the array of which a member of an archive is damaged."""
    try:
        yield
    except Exception as error:  # NumPy, zipfile and its four codecs have no common one
        raise ValueError(
            f"{name!r} is damaged: {shortened(_message(error))}."
        ) from None


def _open_msgpack(file: pathlib.Path) -> dict[Path, StoredArray]:
    """The arrays of Flax's msgpack, which has no index: they are all read at once."""
    from flax import serialization

    # Mapped, so that beside the arrays the file is not in memory a second time.
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        content: Any = mapped
        try:
            tree = serialization.msgpack_restore(content)
        except Exception as error:  # msgpack and Flax have no common error
            raise ValueError(
                "is none of an orbax folder, safetensors, npz and Flax msgpack, or it "
                f"is damaged ({_message(error)})."
            ) from None
    if not isinstance(tree, dict):
        raise ValueError("is msgpack, but no tree of parameters.")
    arrays = {}
    for path, leaf in walk(tree):
        if hasattr(leaf, "dtype"):
            shape = checked_shape("/".join(path), np.shape(leaf))
            spec = Spec(shape, np.dtype(leaf.dtype))
            arrays[path] = StoredArray(spec, functools.partial(np.asarray, leaf))
    return arrays


def walk(
    node: Any, above: Path = (), is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[Path, Any]]:
    """The leaves of nested dicts and lists with their paths."""
    if isinstance(node, list | tuple):
        children: Iterable[tuple[Any, Any]] = enumerate(node)
    else:
        children = node.items() if isinstance(node, dict) else ()
    if not isinstance(node, dict | list | tuple) or (is_leaf and is_leaf(node)):
        yield above, node
        return
    for key, below in children:
        yield from walk(below, (*above, str(key)), is_leaf)


def _without_boxes(arrays: Mapping[Path, StoredArray]) -> dict[Path, StoredArray]:
    """Paths without the level that boxes (nnx variables, `nn.Partitioned`) add.

    A file does not tell a box from a dict; a key `value` with no other beside it is
    taken for one.
    """
    children: dict[Path, set[str]] = {}
    for path in arrays:
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[depth])
    return {
        path[:-1]
        if len(path) > 1 and path[-1] == "value" and len(children[path[:-1]]) == 1
        else path: array
        for path, array in arrays.items()
    }


def _keys(place: str) -> Path:
    return tuple(key for key in place.split("/") if key)


def _below(
    file: pathlib.Path, arrays: Mapping[Path, StoredArray], prefix: Path
) -> dict[Path, StoredArray]:
    """The arrays below a place, by their paths from there."""
    depth = len(prefix)
    own = {
        path[depth:]: array
        for path, array in arrays.items()
        if path[:depth] == prefix and len(path) > depth
    }
    if not own:
        known = sorted({"/".join(path[:-1]) for path in arrays if len(path) > 1})
        place = "/".join(prefix)
        closest = difflib.get_close_matches(place, known, n=5, cutoff=0.0)
        where = f" below {place!r}; the closest are {closest}" if prefix else ""
        raise CheckpointError(f"{file}: holds no arrays{where}.")
    return own


def _shared(path: Path, prefix: Path) -> int:
    """How many keys two paths have in common at their beginning."""
    pairs = enumerate(zip(path, prefix, strict=False))
    return next(
        (i for i, (one, other) in pairs if one != other), min(len(path), len(prefix))
    )


def _find_parameters(file: pathlib.Path, arrays: Iterable[Path]) -> Path:
    """The key `params` nearest to the root, or the root if there is none."""
    paths = list(arrays)
    own = [path for path in paths if _OPTIMIZER_STATE not in path[:-1]]
    found = {path[: path.index("params") + 1] for path in own if "params" in path[:-1]}
    depth = min(map(len, found), default=0)
    nearest = sorted(path for path in found if len(path) == depth)
    if len(nearest) > 1:
        names = list(map("/".join, nearest))
        raise CheckpointError(
            f"{file}: holds parameters at {names}; choose with --params."
        )
    if nearest:
        return nearest[0]
    if len(own) < len(paths):
        places = sorted({path[0] for path in paths})
        raise CheckpointError(
            f"{file}: holds an optimizer's state, and nothing called 'params' beside "
            f"it; say with --params where the parameters are, of {places}."
        )
    return ()
