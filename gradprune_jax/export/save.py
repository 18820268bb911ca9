"""Saving sparse files: those that `open` opens."""

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
from gradprune_jax._checks import check_fraction, check_integer
from gradprune_jax._files import (
    SHARDS_AND_INDEX,
    Spec,
    StoredArray,
    check_free,
    check_storable,
    entry_nbytes,
    is_utf8,
    replacing,
    replacing_folder,
    safetensors_nbytes,
    shard_name,
    write_index,
    write_safetensors,
)
from gradprune_jax.export import bitmask
from gradprune_jax.export.open import LAYOUT, OWN, PARTS, SPARSE, VERSION


def save_sparse(
    path: str | os.PathLike[str],
    params: Any,
    *,
    max_density: float = 0.9,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write parameters to safetensors files that store no zeros of sparse arrays.

    A leaf with at most `max_density` non-zeros becomes `<name>.compressed`, its
    non-zeros in C order, `<name>.bitmask`, a bit for every weight, `<name>.shape`
    and `<name>.row_offsets`, if that makes the file smaller. All others are stored as
    they are. The file is written as a whole or not at all, and is never larger than a
    dense one. Leaves are read one at a time, twice each.

    Args:
      path: of the file; of the folder, if `max_shard_bytes` is given.
      params: any pytree of arrays, plain or boxed; not traced. What `open_sparse`
        returns is one.
      max_density: the fraction of non-zeros above which a leaf is stored dense, 0 to 1.
      metadata: texts to keep in the file beside the arrays; `open_sparse` returns them.
      max_shard_bytes: writes a folder of several files and an index, as Hugging Face's
        libraries do: the leaves in their order, in each file as many as have no more
        bytes than this while they are dense, but at least one. None writes one file.
      overwrite: whether a file of that name may be replaced; a folder is if it holds
        nothing but safetensors files and their index.

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
        if not is_utf8(key + text):
            raise ValueError(
                f"metadata has {key!r}: {text!r}, with a lone surrogate, which UTF-8 "
                "does not hold."
            )
        if key.startswith(OWN):
            raise ValueError(
                f"metadata has {key!r}; names that begin with {OWN!r} are this "
                "library's own."
            )
    if max_shard_bytes is not None:
        check_integer("max_shard_bytes", max_shard_bytes, 1, most=2**63)
    check_free(file, overwrite)
    # What is temporary exists before anything is read, so that a place that cannot be
    # written to is found at once.
    if max_shard_bytes is None:
        with replacing(file, overwrite) as temporary:
            _write(temporary, arrays, max_density, metadata or {})
        return
    shards = list(_shards(arrays, max_shard_bytes))
    names = [shard_name(position, len(shards)) for position in range(len(shards))]
    with replacing_folder(file, overwrite, SHARDS_AND_INDEX) as folder:
        for name, shard in zip(names, shards, strict=True):
            _write(folder / name, shard, max_density, metadata or {})
        write_index(folder, names, "model.safetensors.index.json", {})


def _stored(params: Any) -> dict[str, StoredArray]:
    """Return the leaves of a tree by name, to be brought to the host one by one."""
    arrays = {}
    for leaf in _tree.named_leaves(params):
        value = leaf.value
        _tree.check_values([leaf], "save_sparse")
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


def _shards(
    arrays: Mapping[str, StoredArray], most: int
) -> Iterator[dict[str, StoredArray]]:
    """Yield the arrays of each shard, as many as have no more bytes, at least one."""
    shard: dict[str, StoredArray] = {}
    nbytes = 0
    for name, array in arrays.items():
        if shard and nbytes + array.spec.nbytes > most:
            yield shard
            shard, nbytes = {}, 0
        shard[name] = array
        nbytes += array.spec.nbytes
    yield shard


def _write(
    file: pathlib.Path,
    arrays: Mapping[str, StoredArray],
    max_density: float,
    metadata: Mapping[str, str],
) -> None:
    """Write one file."""
    specs, header = _contents(arrays, max_density, metadata)
    write_safetensors(file, specs, _parts(arrays, specs), header)


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
    if not sparse and not any(name.endswith(f".{PARTS[0]}") for name in names):
        return {}
    return {
        LAYOUT: "sparse-bitmask",
        VERSION: __version__,
        SPARSE: _utf8_json(sparse),
    }


def _utf8_json(value: Any) -> str:
    """Write JSON in which a letter is one letter, whatever its alphabet."""
    return json.dumps(value, ensure_ascii=False)
