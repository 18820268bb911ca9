"""Parameters out of a sparse file, in nested dicts or in a tree that is known."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gradprune_jax import _tree
from gradprune_jax.export.open import open_sparse


def load_sparse(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read what `save_sparse` wrote, to the last bit.

    Args:
      path: of the file; or of several of them, their index or their folder. Dense
        arrays are read too.
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
    arrays = {name: np.asarray(stored) for name, stored in open_sparse(file)[0].items()}
    return _nested(file, arrays) if like is None else _restored(file, arrays, like)


def _nested(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Build nested dicts from names whose keys are joined by `/`."""
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
    """Put arrays into the tree of parameters of the same names, shapes and dtypes."""
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
