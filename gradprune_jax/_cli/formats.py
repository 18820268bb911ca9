"""Formats of checkpoints: told by what a file holds, not by its name.

An opened file is its arrays by path. They are read when they are needed, but those of
msgpack, which has no index.
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from gradprune_jax._cli.faults import words_of
from gradprune_jax._cli.npz import open_npz
from gradprune_jax._cli.orbax_folder import open_folder
from gradprune_jax._files import (
    Shards,
    Spec,
    StoredArray,
    checked_shape,
    holds_shards,
    open_shards,
)
from gradprune_jax.export import open_sparse

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Opened:
    """All that a file holds.

    Attributes:
      arrays: by path.
      is_torch: whether names and axes are PyTorch's: keys joined by dots, (out, in).
      metadata: what safetensors files say besides, without this library's own.
      shards: the safetensors files of a folder; None of all other formats.
    """

    arrays: dict[Path, StoredArray]
    is_torch: bool = False
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shards: Shards | None = None


def open_arrays(file: pathlib.Path) -> Opened:
    """Open an orbax folder, safetensors in one file or several, npz or Flax msgpack.

    Raises:
      ValueError: if it is of no known format, or damaged.
      OSError: if it cannot be read.
    """
    if holds_shards(file):
        return _open_safetensors(file, open_shards(file))
    if file.is_dir():
        return Opened(_without_boxes(open_folder(file)))
    if _begins_like_safetensors(file):
        return _open_safetensors(file)
    # Not before, because a safetensors file can end like a zip archive by chance.
    if zipfile.is_zipfile(file):
        return _of_names(open_npz(file))
    return Opened(_without_boxes(_open_msgpack(file)))


def _begins_like_safetensors(file: pathlib.Path) -> bool:
    """Whether a file begins with the length of a header, and the header's brace."""
    with file.open("rb") as stream:
        length, brace = stream.read(8), stream.read(1)
    if not length:
        raise ValueError("is empty.")
    return brace == b"{" and int.from_bytes(length, "little") < 2**32


def _open_safetensors(file: pathlib.Path, shards: Shards | None = None) -> Opened:
    """Open safetensors, dense or sparse, of JAX or PyTorch, in one file or several."""
    named, metadata = open_sparse(file)
    return dataclasses.replace(_of_names(named), metadata=metadata, shards=shards)


def _of_names(named: Mapping[str, StoredArray]) -> Opened:
    """Arrays of a format without levels: names with dots alone are PyTorch's."""
    is_torch = any("." in name for name in named) and not any(
        "/" in name for name in named
    )
    separator = "." if is_torch else "/"
    arrays = {tuple(name.split(separator)): named[name] for name in named}
    return Opened(arrays, is_torch)


def _open_msgpack(file: pathlib.Path) -> dict[Path, StoredArray]:
    """Read the arrays of Flax's msgpack: without an index, they come all at once."""
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
                f"is damaged ({words_of(error)})."
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
    """Yield the leaves of nested dicts and lists with their paths."""
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
    """Remove from paths the level that boxes (nnx variables, `nn.Partitioned`) add.

    In a file a box looks like a dict; a key `value` with no other beside it is taken
    for one.
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
