"""Opening sparse files: safetensors in which an array may be non-zeros and a bit mask.

Such an array is stored as four, `<name>.compressed` and so on (see `bitmask`), and the
metadata lists the names. All other arrays are stored as they are.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Set

import numpy as np

from gradprune_jax._files import (
    Spec,
    StoredArray,
    checked_shape,
    holds_shards,
    open_safetensors,
    open_shards,
)
from gradprune_jax.export import bitmask

PARTS = bitmask.Bitmask._fields

# In the metadata: the names of sparse arrays, and what wrote them.
OWN = "gradprune_jax."
SPARSE = f"{OWN}sparse"
LAYOUT = f"{OWN}layout"
VERSION = f"{OWN}version"


def open_sparse(
    path: str | os.PathLike[str],
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Open a sparse or dense safetensors file without reading its arrays.

    For files that do not fit into memory: `storage_report` and `save_sparse` take the
    arrays as they are, and read one at a time.

    Args:
      path: of the file; or of several of them, their index or their folder.

    Returns:
      The arrays by name, and the metadata of the files, without this library's own. An
      array has a `shape` and a `dtype`, and `np.asarray` reads it, each time anew.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if safetensors is not installed.
      ValueError: if the file is damaged or of another format; naming the file and the
        array.

    Examples:
      >>> import tempfile
      >>> from gradprune_jax.export import save_sparse
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_sparse(f"{folder}/model", {"w": np.eye(64)}, metadata={"seed": "0"})
      ...     arrays, metadata = open_sparse(f"{folder}/model")
      ...     print(arrays["w"].shape, metadata["seed"], np.asarray(arrays["w"]).sum())
      (64, 64) 0 64.0
    """
    file = pathlib.Path(path)
    if not file.exists() or not holds_shards(file):
        return _open_file(file)
    arrays: dict[str, StoredArray] = {}
    metadata: dict[str, str] = {}
    for shard in open_shards(file).files:
        own, said = _open_file(shard)
        twice = arrays.keys() & own
        if twice:
            raise ValueError(f"{shard}: {min(twice)!r} is in another file too.")
        arrays |= own
        metadata = said | metadata
    return arrays, metadata


def _open_file(
    file: pathlib.Path,
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Open one file, see `open_sparse`."""
    stored, metadata = open_safetensors(file)
    sparse = _sparse_names(file, metadata, stored.keys())
    parts = {f"{name}.{part}" for name in sparse for part in PARTS}
    arrays = {name: each for name, each in stored.items() if name not in parts}
    for name in sparse:
        bits, lengths = stored[f"{name}.bitmask"].spec, stored[f"{name}.shape"].read()
        try:
            shape = checked_shape(name, bitmask.checked_shape(lengths, bits))
        except ValueError as error:
            raise _damaged(file, name, error) from None
        spec = Spec(shape, stored[f"{name}.compressed"].dtype)
        read = functools.partial(_decompress, file, name, stored)
        arrays[name] = StoredArray(spec, read, file)
    return arrays, {
        key: text for key, text in metadata.items() if not key.startswith(OWN)
    }


def _sparse_names(
    file: pathlib.Path, metadata: Mapping[str, str], names: Set[str]
) -> list[str]:
    """Return the names of sparse arrays, as the file lists them or by their parts."""
    if SPARSE in metadata:
        try:
            sparse = [str(name) for name in json.loads(metadata[SPARSE])]
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{file}: its metadata {SPARSE!r} is no JSON list of names; write the "
                "file again."
            ) from None
    else:
        ending = f".{PARTS[0]}"
        stems = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        sparse = [stem for stem in stems if f"{stem}.bitmask" in names]
    for name in sparse:
        for part in PARTS:
            if f"{name}.{part}" not in names:
                raise ValueError(
                    f"{file}: {name!r} is stored sparse, but lacks {name}.{part}; "
                    "write the file again."
                )
    return sparse


def _decompress(
    file: pathlib.Path, name: str, stored: Mapping[str, StoredArray]
) -> np.ndarray:
    """Read one sparse array."""
    parts = (stored[f"{name}.{part}"].read() for part in PARTS)
    try:
        return bitmask.decompress(bitmask.Bitmask(*parts))
    except ValueError as error:
        raise _damaged(file, name, error) from None


def _damaged(file: pathlib.Path, name: str, error: ValueError) -> ValueError:
    return ValueError(f"{file}: {name!r} is damaged, {error}; write the file again.")
