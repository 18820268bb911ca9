"""Sparse files: safetensors in which a sparse array is its non-zeros and a bit mask.

Such an array is stored as four, `<name>.compressed` and so on (see `bitmask`), and the
metadata lists the names. All other arrays are stored as they are.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import check_fraction, is_traced
from gradprune_jax._files import (
    Spec,
    StoredArray,
    check_free,
    check_storable,
    checked_shape,
    entry_nbytes,
    open_safetensors,
    replacing,
    safetensors_nbytes,
    write_safetensors,
)
from gradprune_jax.export import bitmask

_PARTS = bitmask.Bitmask._fields

# In the metadata: the names of sparse arrays, and what wrote them.
_OWN = "gradprune_jax."
_SPARSE = f"{_OWN}sparse"
_LAYOUT = f"{_OWN}layout"
_VERSION = f"{_OWN}version"


def save_sparse(
    path: str | os.PathLike[str],
    params: Any,
    *,
    max_density: float = 0.9,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write parameters to one safetensors file that stores no zeros of sparse arrays.

    A leaf with at most `max_density` non-zeros becomes `<name>.compressed`, its
    non-zeros in C order, `<name>.bitmask`, a bit for every weight, `<name>.shape`
    and `<name>.row_offsets`, if that makes the file smaller. All others are stored as
    they are. The file is written as a whole or not at all, and is never larger than a
    dense one. Leaves are read one at a time, twice each.

    Args:
      path: of the file.
      params: any pytree of arrays, plain or boxed; not traced. What `open_sparse`
        returns is one.
      max_density: the fraction of non-zeros above which a leaf is stored dense, 0 to 1.
      metadata: texts to keep in the file beside the arrays; `open_sparse` returns them.
      overwrite: whether a file of that name may be replaced.

    Raises:
      FileExistsError: if there is such a file, and it may not be replaced.
      ImportError: if safetensors is not installed.
      ValueError: if an argument is not valid, or a leaf is no array of a dtype that
        safetensors holds.

    Examples:
      >>> import tempfile
      >>> from gradprune_jax import export
      >>> params = {"dense": {"kernel": np.eye(64, dtype=np.float32)}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_sparse(f"{folder}/model.safetensors", params)
      ...     loaded = export.load_sparse(f"{folder}/model.safetensors")
      >>> np.testing.assert_array_equal(loaded["dense"]["kernel"], np.eye(64))
    """
    file = pathlib.Path(path)
    arrays = _stored(params)
    check_fraction("max_density", max_density)
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise ValueError(f"metadata has {key!r}: {text!r}; both must be strings.")
        if key.startswith(_OWN):
            raise ValueError(
                f"metadata has {key!r}; names that begin with {_OWN!r} are this "
                "library's own."
            )
    check_free(file, overwrite)
    # The temporary file exists before anything is read, so that a place that cannot be
    # written to is found at once.
    with replacing(file, overwrite) as temporary:
        specs, header = _contents(arrays, max_density, metadata or {})
        write_safetensors(temporary, specs, _parts(arrays, specs), header)


def open_sparse(
    path: str | os.PathLike[str],
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Open a sparse or dense safetensors file without reading its arrays.

    For files that do not fit into memory: `storage_report` and `save_sparse` take the
    arrays as they are, and read one at a time.

    Args:
      path: of the file.

    Returns:
      The arrays by name, and the metadata of the file, without this library's own. An
      array has a `shape` and a `dtype`, and `np.asarray` reads it, each time anew.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if safetensors is not installed.
      ValueError: if the file is damaged or of another format; naming the file and the
        array.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_sparse(f"{folder}/model", {"w": np.eye(64)}, metadata={"seed": "0"})
      ...     arrays, metadata = open_sparse(f"{folder}/model")
      ...     print(arrays["w"].shape, metadata["seed"], np.asarray(arrays["w"]).sum())
      (64, 64) 0 64.0
    """
    file = pathlib.Path(path)
    stored, metadata = open_safetensors(file)
    sparse = _sparse_names(file, metadata, stored.keys())
    parts = {f"{name}.{part}" for name in sparse for part in _PARTS}
    arrays = {name: each for name, each in stored.items() if name not in parts}
    for name in sparse:
        bits, lengths = stored[f"{name}.bitmask"].spec, stored[f"{name}.shape"].read()
        try:
            shape = checked_shape(name, bitmask.checked_shape(lengths, bits))
        except ValueError as error:
            raise _damaged(file, name, error) from None
        spec = Spec(shape, stored[f"{name}.compressed"].dtype)
        read = functools.partial(_decompress, file, name, stored)
        arrays[name] = StoredArray(spec, read)
    return arrays, {
        key: text for key, text in metadata.items() if not key.startswith(_OWN)
    }


def _stored(params: Any) -> dict[str, StoredArray]:
    """Return the leaves of a tree by name, to be brought to the host one by one."""
    arrays = {}
    for leaf in _tree.named_leaves(params):
        value = leaf.value
        if is_traced(value):
            raise ValueError("save_sparse writes values and cannot run under jit.")
        if not hasattr(value, "dtype") or jnp.issubdtype(
            value.dtype, jax.dtypes.extended
        ):
            raise ValueError(
                f"{leaf.name!r} is {type(value).__name__}, not an array of numbers; "
                "save the parameters alone."
            )
        if not getattr(value, "is_fully_addressable", True):
            raise ValueError(
                f"{leaf.name!r} lies on devices of other processes too; gather it "
                "first: jax.experimental.multihost_utils.process_allgather."
            )
        spec = Spec(np.shape(value), np.dtype(value.dtype))
        arrays[leaf.name] = StoredArray(spec, functools.partial(np.asarray, value))
    return arrays


def _contents(
    arrays: Mapping[str, StoredArray], max_density: float, metadata: Mapping[str, str]
) -> tuple[dict[str, Spec], dict[str, str]]:
    """Count what is not zero, and decide which arrays are stored sparse.

    An array is, if it is sparse enough and that makes the file smaller, with what its
    parts add to the header. None is, if all of them together do not make up for the
    metadata that they need.

    Returns:
      What the file will hold by name, arrays or their parts; and the metadata.
    """
    dense = {name: array.spec for name, array in arrays.items()}
    check_storable(dense)
    end = sum(spec.nbytes for spec in dense.values())
    sparse: list[str] = []
    specs: dict[str, Spec] = {}
    for name, array in arrays.items():
        own = {name: array.spec}
        nonzero = int(np.count_nonzero(bitmask.nonzero_bits(array.read())))
        if _is_sparse(array.spec, nonzero, max_density):
            parts = {
                f"{name}.{part}": spec
                for part, spec in bitmask.part_specs(array.spec, nonzero).items()
            }
            if _packed_nbytes(name, parts, end) < entry_nbytes(name, array.spec, 0):
                sparse.append(name)
                own = parts
        for each in own:
            if each in specs:
                raise ValueError(
                    f"two arrays would both be stored as {each!r}; rename one."
                )
        specs |= own
    header = {**metadata, **_own_metadata(sparse, dense.keys())}
    plain_nbytes = safetensors_nbytes(dense, metadata)
    if sparse and safetensors_nbytes(specs, header) > plain_nbytes:
        return dense, {**metadata, **_own_metadata([], dense.keys())}
    return specs, header


def _parts(
    arrays: Mapping[str, StoredArray], specs: Mapping[str, Spec]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield all that the file will hold, with one array in memory at a time."""
    for name, array in arrays.items():
        if name in specs:
            yield name, array.read()
            continue
        for part, value in bitmask.compress(array.read())._asdict().items():
            yield f"{name}.{part}", value


def _is_sparse(spec: Spec, nonzero: int, max_density: float) -> bool:
    """Whether an array may be stored as its non-zeros and a mask."""
    if not spec.shape or not jnp.issubdtype(spec.dtype, jnp.floating):
        return False
    return nonzero <= max_density * int(np.prod(spec.shape, dtype=object))


def _packed_nbytes(name: str, parts: Mapping[str, Spec], end: int) -> int:
    """Return the bytes that an array's parts add to a file of `end` bytes, at most."""
    listed = _utf8_json(_utf8_json(name))  # in a list within the metadata
    return len(listed.encode()) + sum(
        entry_nbytes(part, spec, end) for part, spec in parts.items()
    )


def _own_metadata(sparse: list[str], names: Set[str]) -> dict[str, str]:
    """Return what the file says of its sparse arrays; nothing if it has none."""
    from gradprune_jax import __version__

    # Readers take arrays of such names for parts, if nothing says that they are none.
    if not sparse and not any(name.endswith(f".{_PARTS[0]}") for name in names):
        return {}
    return {
        _LAYOUT: "sparse-bitmask",
        _VERSION: __version__,
        _SPARSE: _utf8_json(sparse),
    }


def _utf8_json(value: Any) -> str:
    """Write JSON in which a letter is one letter, whatever its alphabet."""
    return json.dumps(value, ensure_ascii=False)


def _sparse_names(
    file: pathlib.Path, metadata: Mapping[str, str], names: Set[str]
) -> list[str]:
    """Return the names of sparse arrays, as the file lists them or by their parts."""
    if _SPARSE in metadata:
        try:
            sparse = [str(name) for name in json.loads(metadata[_SPARSE])]
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{file}: its metadata {_SPARSE!r} is no JSON list of names; write the "
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
    """Read one sparse array."""
    parts = (stored[f"{name}.{part}"].read() for part in _PARTS)
    try:
        return bitmask.decompress(bitmask.Bitmask(*parts))
    except ValueError as error:
        raise _damaged(file, name, error) from None


def _damaged(file: pathlib.Path, name: str, error: ValueError) -> ValueError:
    return ValueError(f"{file}: {name!r} is damaged, {error}; write the file again.")
