"""Reading of sparse files, one array at a time."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._files import safetensors as _safetensors
from gradprune_jax._files.safetensors import Spec, StoredArray
from gradprune_jax.export import bitmask as _bitmask

# The metadata that lists the names of sparse arrays.
SPARSE = "gradprune_jax.sparse"

_PARTS = _bitmask.Bitmask._fields


def load_sparse(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Reads what `save_sparse` wrote, to the last bit.

    Args:
      path: of the file. A safetensors file of dense arrays is read too.
      like: parameters, or their shapes, whose tree, boxes and shardings the result
        takes on. None makes nested dicts of NumPy arrays, by splitting names at `/`.

    Returns:
      The parameters: arrays in the tree of `like`, NumPy's where it has NumPy's and
      JAX's elsewhere; or NumPy arrays in dicts.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if safetensors is not installed.
      ValueError: if the file is damaged or of another format, or does not fit `like`;
        naming the file and the array.

    Examples:
      >>> load_sparse("no/such/file")
      Traceback (most recent call last):
      ...
      FileNotFoundError: no/such/file: is no file.
    """
    file = pathlib.Path(path)
    arrays = {name: stored.read() for name, stored in open_sparse(file)[0].items()}
    return _nested(file, arrays) if like is None else _restored(file, arrays, like)


def open_sparse(
    file: pathlib.Path,
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """The arrays of a sparse or dense file by name, not read yet, and its metadata."""
    stored, metadata = _safetensors.open_file(file)
    sparse = _sparse_names(file, metadata, stored.keys())
    parts = {f"{name}.{part}" for name in sparse for part in _PARTS}
    arrays = {name: each for name, each in stored.items() if name not in parts}
    for name in sparse:
        read = functools.partial(_decompress, file, name, stored)
        packed_shape = stored[f"{name}.shape"].read()
        try:
            shape = _bitmask.checked_shape(packed_shape, stored[f"{name}.bitmask"].spec)
            _safetensors.checked_shape(name, shape)
        except ValueError as error:
            raise _damaged(file, name, error) from None
        spec = Spec(shape, stored[f"{name}.compressed"].spec.dtype)
        arrays[name] = StoredArray(spec, read)
    return arrays, metadata


def _sparse_names(
    file: pathlib.Path, metadata: Mapping[str, str], names: Set[str]
) -> list[str]:
    """The names of sparse arrays, by the file's own word or by their parts."""
    if SPARSE in metadata:
        try:
            sparse = [str(name) for name in json.loads(metadata[SPARSE])]
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{file}: its metadata {SPARSE!r} is no JSON list of names; write the "
                "file again."
            ) from None
    else:
        ending = f".{_PARTS[0]}"
        stems = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        sparse = [stem for stem in stems if f"{stem}.bitmask" in names]
    for name in sparse:
        for part in _PARTS:
            if f"{name}.{part}" not in names:
                raise ValueError(
                    f"{file}: {name!r} is stored sparse, but lacks {name}.{part}; "
                    "write the file again."
                )
    return sparse


def _decompress(
    file: pathlib.Path, name: str, stored: Mapping[str, StoredArray]
) -> np.ndarray:
    """One sparse array."""
    parts = (stored[f"{name}.{part}"].read() for part in _PARTS)
    try:
        return _bitmask.decompress(_bitmask.Bitmask(*parts))
    except ValueError as error:
        raise _damaged(file, name, error) from None


def _damaged(file: pathlib.Path, name: str, error: ValueError) -> ValueError:
    return ValueError(f"{file}: {name!r} is damaged, {error}; write the file again.")


def _nested(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Nested dicts, from names whose keys are joined by `/`."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise ValueError(
                f"{file}: {name!r} lies above or below another array; give `like`."
            )
        node[last] = array
    return tree


def _restored(file: pathlib.Path, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The arrays in the tree of parameters of the same names, shapes and dtypes."""
    leaves = _tree.named_leaves(like)
    wanted = [leaf.name for leaf in leaves]
    missing = sorted(set(wanted) - set(arrays))
    extra = sorted(set(arrays) - set(wanted))
    if missing or extra:
        which = f"lacks {missing}" if missing else f"has {extra} besides"
        raise ValueError(f"{file}: does not fit the parameters, it {which}.")
    restored = []
    for leaf in leaves:
        array = arrays[leaf.name]
        shape = np.shape(leaf.value)
        dtype = leaf.value.dtype if hasattr(leaf.value, "dtype") else array.dtype
        if (array.shape, array.dtype) != (shape, dtype):
            raise ValueError(
                f"{file}: {leaf.name!r} is {array.dtype} of shape {array.shape}, where "
                f"the parameters have {dtype} of {shape}."
            )
        # What JAX would narrow, such as float64, stays as it is in NumPy.
        is_narrowed = jax.dtypes.canonicalize_dtype(dtype) != dtype
        if not isinstance(leaf.value, np.ndarray | np.generic) and not is_narrowed:
            array = jax.device_put(array, getattr(leaf.value, "sharding", None))
        restored.append(array)
    treedef: Any = jax.tree.structure(like)
    return treedef.unflatten(restored)
