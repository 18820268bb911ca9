"""Checkpoints of every common format, opened without reading their arrays.

A format is told by what a file holds, not by its name.
"""

from __future__ import annotations

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
from gradprune_jax._load_sparse import open_sparse
from gradprune_jax._safetensors import Spec, StoredArray

Path = tuple[str, ...]

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
      left_out: the places near the root where other arrays are.
      separator: between the keys of a name.
    """

    file: pathlib.Path
    arrays: dict[Path, StoredArray]
    left_out: tuple[str, ...] = ()
    separator: str = "/"

    @property
    def named(self) -> dict[str, StoredArray]:
        """The parameters by name."""
        return {self.separator.join(path): each for path, each in self.arrays.items()}

    @property
    def shapes(self) -> dict[str, Any]:
        """The tree of their shapes, as ``jax.eval_shape`` gives them."""
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
      params: where the parameters are in it, keys joined by ``/``; ``"/"`` is all of
        it. None is the key "params" nearest to the root, outside an optimizer's state;
        without one, all.

    Returns:
      The parameters.

    Raises:
      CheckpointError: if it is of no known format, damaged, or it is not plain where
        its parameters are.
      OSError: if it cannot be read.
    """
    separator = "/"
    try:
        if file.is_dir():
            arrays = orbax_folder.open_folder(file)
        elif zipfile.is_zipfile(file):
            arrays = _open_npz(file)
        elif _begins_like_safetensors(file):
            named = open_sparse(file)
            if not any("/" in name for name in named):
                separator = "."  # as PyTorch names its parameters
            arrays = {tuple(name.split(separator)): named[name] for name in named}
        else:
            arrays = _open_msgpack(file)
    except ValueError as error:
        message = str(error)
        raise CheckpointError(
            message if message.startswith(str(file)) else f"{file}: {message}"
        ) from None
    arrays = _without_boxes(arrays)
    prefix = _find_parameters(file, arrays) if params is None else _keys(params)
    own = dict(sorted(_below(file, arrays, prefix).items()))
    left_out = {path[0] for path in arrays if path[: len(prefix)] != prefix}
    return Checkpoint(file, own, tuple(sorted(left_out)), separator)


def nested(file: pathlib.Path, leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
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
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        if not members:
            raise ValueError("is a zip archive without NumPy arrays.")
        for member in members:
            name = member.removesuffix(".npy")
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read_header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(stream)
            if dtype.kind not in "biufc":
                raise ValueError(
                    f"{name!r} has dtype {dtype}; NumPy's archives hold no bfloat16 "
                    "and no 8-bit floats, and objects are not unpickled. Save it as "
                    "safetensors."
                )
            read = functools.partial(_read_npz, file, name)
            arrays[tuple(name.split("/"))] = StoredArray(Spec(shape, dtype), read)
    return arrays


def _read_npz(file: pathlib.Path, name: str) -> np.ndarray:
    with np.load(file, allow_pickle=False) as archive:
        return np.asarray(archive[name])


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
                f"is damaged ({str(error) or type(error).__name__})."
            ) from None
    if not isinstance(tree, dict):
        raise ValueError("is msgpack, but no tree of parameters.")
    return {
        path: StoredArray(
            Spec(np.shape(leaf), np.dtype(leaf.dtype)),
            functools.partial(np.asarray, leaf),
        )
        for path, leaf in walk(tree)
        if hasattr(leaf, "dtype")
    }


def walk(
    node: Any, above: Path = (), is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[Path, Any]]:
    """The leaves of nested dicts with their paths."""
    if not isinstance(node, dict) or (is_leaf is not None and is_leaf(node)):
        yield above, node
        return
    for key, below in node.items():
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


def _find_parameters(file: pathlib.Path, arrays: Iterable[Path]) -> Path:
    """The key `params` nearest to the root, or the root if there is none."""
    own = [path for path in arrays if _OPTIMIZER_STATE not in path[:-1]]
    found = {path[: path.index("params") + 1] for path in own if "params" in path[:-1]}
    depth = min(map(len, found), default=0)
    nearest = sorted("/".join(path) for path in found if len(path) == depth)
    if len(nearest) > 1:
        raise CheckpointError(
            f"{file}: holds parameters at {nearest}; choose with --params."
        )
    if nearest:
        return tuple(nearest[0].split("/"))
    if len(own) < len(list(arrays)):
        places = sorted({path[0] for path in arrays})
        raise CheckpointError(
            f"{file}: holds an optimizer's state, and nothing called 'params' beside "
            f"it; say with --params where the parameters are, of {places}."
        )
    return ()
