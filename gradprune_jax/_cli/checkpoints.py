"""Checkpoints: the parameters among all that a file holds."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from gradprune_jax._cli.faults import READ_ERRORS, CheckpointError, blaming
from gradprune_jax._cli.formats import Path, open_arrays
from gradprune_jax._files import Shards, StoredArray

# Deeper trees are no model's, and too deep for recursion.
_DEPTH = 200

# Where an optimizer keeps what has the parameters' paths, but is none of them.
_OPTIMIZER_STATE = "opt_state"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The parameters of a checkpoint.

    Attributes:
      file: the file or folder.
      arrays: the parameters by path, in the order of a tree of dicts; read one by one.
      left_out: where the other arrays are, by the keys nearest to the root.
      is_torch: whether names and axes are PyTorch's: keys joined by dots, (out, in).
      metadata: what safetensors files say besides, without this library's own.
      shards: the safetensors files of a folder; None of all other formats.
    """

    file: pathlib.Path
    arrays: dict[Path, StoredArray]
    left_out: tuple[str, ...] = ()
    is_torch: bool = False
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shards: Shards | None = None

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

    def by_shard(self) -> dict[str, Checkpoint]:
        """The parameters that each file holds, by the name of the file."""
        parts: dict[str, dict[Path, StoredArray]] = {}
        for path, array in self.arrays.items():
            name = "" if array.file is None else array.file.name
            parts.setdefault(name, {})[path] = array
        return {
            name: dataclasses.replace(self, arrays=parts[name])
            for name in sorted(parts)
        }

    @property
    def shapes(self) -> dict[str, Any]:
        """The shapes of the parameters, as a tree."""
        return self.tree(
            {
                path: jax.ShapeDtypeStruct(each.shape, each.dtype)
                for path, each in self.arrays.items()
            }
        )

    def tree(self, leaves: Mapping[Path, Any]) -> dict[str, Any]:
        """A tree of leaves by path: nested dicts, or PyTorch's flat names."""
        return nested(self.file, leaves, is_flat=self.is_torch)


def open_checkpoint(file: pathlib.Path, params: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, and find the parameters in it.

    Args:
      file: the file or folder.
      params: where the parameters are in it, keys joined by `/`; `"/"` is all of
        it. None is the key "params" nearest to the root, outside an optimizer's state,
        or all if there is none.

    Returns:
      The parameters.

    Raises:
      CheckpointError: if it is of no known format, damaged, or it is not plain where
        its parameters are.
      OSError: if it cannot be read.
    """
    with blaming(file, READ_ERRORS):
        opened = open_arrays(file)
    arrays = opened.arrays
    if params is not None:
        prefix = _keys(params)
    else:
        # In PyTorch a module may be called so, which holds a part of the parameters.
        is_whole = opened.is_torch and all(path[0] != "params" for path in arrays)
        prefix = () if is_whole else _find_parameters(file, arrays)
    own = {
        path: dataclasses.replace(array, read=functools.partial(_read, file, array))
        for path, array in sorted(_below(file, arrays, prefix).items())
    }
    left_out = {
        path[: _shared(path, prefix) + 1]
        for path in arrays
        if path[: len(prefix)] != prefix
    }
    names = tuple(sorted(map("/".join, left_out)))
    return Checkpoint(file, own, names, opened.is_torch, opened.metadata, opened.shards)


def _read(file: pathlib.Path, array: StoredArray) -> np.ndarray:
    """Read one array; damage is reported with the name of the file."""
    with blaming(file, READ_ERRORS):
        return array.read()


def nested(
    file: pathlib.Path, leaves: Mapping[Path, Any], is_flat: bool = False
) -> dict[str, Any]:
    """Build nested dicts from leaves by path.

    PyTorch's names are flat: an array may lie below another one (`weight.absmax`).
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if len(path) > _DEPTH:
            raise CheckpointError(
                f"{file}: {'/'.join(path[:4])!r}... is a path of {len(path):,} keys; "
                f"it must be at most {_DEPTH}."
            )
        if is_flat:
            tree["/".join(path)] = leaf
            continue
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


def _keys(place: str) -> Path:
    """Split a place at `/`."""
    return tuple(key for key in place.split("/") if key)


def _below(
    file: pathlib.Path, arrays: Mapping[Path, StoredArray], prefix: Path
) -> dict[Path, StoredArray]:
    """Return the arrays below a place, by their paths from there."""
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
    """Count the keys that two paths have in common at their beginning."""
    pairs = enumerate(zip(path, prefix, strict=False))
    return next(
        (i for i, (one, other) in pairs if one != other), min(len(path), len(prefix))
    )


def _find_parameters(file: pathlib.Path, arrays: Iterable[Path]) -> Path:
    """Find the key `params` nearest to the root; the root if there is none."""
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
