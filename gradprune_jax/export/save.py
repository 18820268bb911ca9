"""Writing of sparse files: safetensors with non-zeros and bit masks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import check_fraction, is_traced
from gradprune_jax._files import safetensors as _safetensors
from gradprune_jax._files.atomic import check_free, making, replacing_all
from gradprune_jax._files.safetensors import Spec, StoredArray
from gradprune_jax.export import bitmask as _bitmask
from gradprune_jax.export import torch_layout as _torch_layout
from gradprune_jax.export.load import SPARSE

Layout = Literal["sparse-bitmask", "compressed-tensors"]

_PARTS = _bitmask.Bitmask._fields
_LAYOUT = "gradprune_jax.layout"
_VERSION = "gradprune_jax.version"
_MODEL, _CONFIG = "model.safetensors", "config.json"


def save_sparse(
    path: str | os.PathLike[str],
    params: Any,
    *,
    layout: Layout = "sparse-bitmask",
    max_density: float = 0.9,
    overwrite: bool = False,
) -> None:
    """Writes parameters to one safetensors file, the sparse ones as what is left.

    A leaf with at most `max_density` non-zeros becomes `<name>.compressed`, its
    non-zeros in C order, `<name>.bitmask`, a bit for every weight, `<name>.shape`
    and `<name>.row_offsets`, if that makes the file smaller. All others are stored as
    they are. The file is there as a whole or not at all, and never larger than a dense
    one, `config.json` not counted.

    Args:
      path: of the file; with the layout `"compressed-tensors"` of a folder for
        `model.safetensors` and `config.json`.
      params: any pytree of arrays, plain or boxed; not traced.
      layout: `"sparse-bitmask"` names arrays by their paths, keys joined by `/`.
        `"compressed-tensors"` names and turns them as that library (0.14, the last
        that reads sparse models) expects of PyTorch: `Dense_0/kernel` of shape
        (in, out) becomes `Dense_0.weight` of shape (out, in), kernels of
        convolutions go from HWIO to OIHW, `embedding` and `scale` become
        `weight`, and of a sparse array the name is without `.weight`. Kernels of
        attention, (in, heads, dim), have no counterpart and are refused: reshape them.
      max_density: the fraction of non-zeros above which a leaf is stored dense, 0 to 1.
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
    write_sparse(pathlib.Path(path), _stored(params), layout, max_density, overwrite)


def write_sparse(
    file: pathlib.Path,
    arrays: Mapping[str, StoredArray],
    layout: Layout = "sparse-bitmask",
    max_density: float = 0.9,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> list[pathlib.Path]:
    """Writes arrays as `save_sparse` does, with one of them in memory at a time.

    Each is read twice: its non-zeros must be counted before any has its place.

    Returns:
      The files that were written.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; it must be one of {get_args(Layout)}.")
    check_fraction("max_density", max_density)
    for_torch = layout == "compressed-tensors"
    files = [file / _MODEL, file / _CONFIG] if for_torch else [file]
    for each in files:
        check_free(each, overwrite)
    if for_torch:
        arrays = _torch_layout.as_torch(arrays)
    with contextlib.ExitStack() as written:
        if for_torch:
            written.enter_context(making(file))
        # The files are there from here on, so that one that cannot be written is found
        # before anything is read.
        model, *config = written.enter_context(replacing_all(files, overwrite))
        suffix = ".weight" if for_torch else ""
        contents = _Contents.of(arrays, max_density, suffix, metadata or {}, layout)
        for each in config:
            each.write_text(json.dumps(_config(contents), indent=2) + "\n")
        _safetensors.write(model, contents.specs, contents.read(), contents.metadata)
    return files


def _config(contents: _Contents) -> dict[str, Any]:
    """What stands beside the file for compressed-tensors."""
    sizes = (np.prod(each.spec.shape, dtype=int) for each in contents.arrays.values())
    sparse = sorted(contents.packed.values())
    return _torch_layout.config(int(sum(sizes)), contents.nonzero, sparse)


def _stored(params: Any) -> dict[str, StoredArray]:
    """The leaves of a tree by name, to be brought to the host when they are read."""
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


@dataclasses.dataclass(frozen=True)
class _Contents:
    """What a file will hold.

    Attributes:
      arrays: those to write.
      packed: for those of them that are stored sparse, the name without its suffix.
      specs: everything that the file will hold.
      nonzero: the number of values that are not zero.
      metadata: what its header says besides.
    """

    arrays: Mapping[str, StoredArray]
    packed: dict[str, str]
    specs: dict[str, Spec]
    nonzero: int
    metadata: dict[str, str]

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, StoredArray],
        max_density: float,
        suffix: str,
        metadata: Mapping[str, str],
        layout: Layout,
    ) -> _Contents:
        """Counts what is not zero, and decides which arrays are stored sparse.

        An array is, if it is sparse enough and that makes the file smaller, with what
        its parts add to the header. None is, if all of them together do not make up for
        the metadata that they need.
        """
        packed: dict[str, str] = {}
        specs: dict[str, Spec] = {}
        dense = {name: array.spec for name, array in arrays.items()}
        _safetensors.check_storable(dense)
        end = sum(spec.nbytes for spec in dense.values())
        total = 0
        for name, array in arrays.items():
            nonzero = int(np.count_nonzero(_bitmask.nonzero_bits(array.read())))
            total += nonzero
            own = {name: array.spec}
            if _is_sparse(array.spec, nonzero, max_density):
                stem = name.removesuffix(suffix)
                parts = {
                    f"{stem}.{part}": spec
                    for part, spec in _packed_specs(array.spec, nonzero).items()
                }
                if _packed_nbytes(stem, parts, end) < _safetensors.entry_nbytes(
                    name, array.spec, 0
                ):
                    packed[name], own = stem, parts
            for each in own:
                if each in specs:
                    raise ValueError(
                        f"two arrays would both be stored as {each!r}; rename one."
                    )
            specs |= own
        said = {**metadata, **_metadata(layout, packed.values(), dense)}
        nbytes = _safetensors.nbytes(specs, said)
        if packed and nbytes > _safetensors.nbytes(dense, metadata):
            packed, specs = {}, dense
            said = {**metadata, **_metadata(layout, (), dense)}
        return cls(arrays, packed, specs, total, said)

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """All that the file will hold, one array at a time."""
        for name, array in self.arrays.items():
            if name not in self.packed:
                yield name, array.read()
                continue
            bitmask = _bitmask.compress(array.read())
            for part, value in zip(_PARTS, bitmask, strict=True):
                yield f"{self.packed[name]}.{part}", value


def _is_sparse(spec: Spec, nonzero: int, max_density: float) -> bool:
    """Whether an array may be stored as its non-zeros and a mask."""
    if not spec.shape or not jnp.issubdtype(spec.dtype, jnp.floating):
        return False
    return nonzero <= max_density * int(np.prod(spec.shape, dtype=object))


def _packed_nbytes(stem: str, parts: Mapping[str, Spec], end: int) -> int:
    """The bytes that an array's parts add to a file of `end` bytes, at most."""
    listed = _utf8_json(_utf8_json(stem))  # in a list within the metadata
    return len(listed.encode()) + sum(
        _safetensors.entry_nbytes(name, spec, end) for name, spec in parts.items()
    )


def _packed_specs(spec: Spec, nonzero: int) -> dict[str, Spec]:
    """The shapes and dtypes of an array's parts."""
    *rows, columns = spec.shape
    return {
        "compressed": Spec((nonzero,), spec.dtype),
        "bitmask": Spec((*rows, -(-columns // 8)), np.dtype(np.uint8)),
        "shape": Spec((len(spec.shape),), np.dtype(np.int64)),
        "row_offsets": Spec(tuple(rows), np.dtype(np.int64)),
    }


def _metadata(
    layout: Layout, sparse: Iterable[str], names: Iterable[str]
) -> dict[str, str]:
    """What the file says of its sparse arrays; nothing of none, which is plain then."""
    from gradprune_jax import __version__

    listed = list(sparse)
    # Readers take arrays of such names for parts, if nothing says that they are none.
    if not listed and not any(name.endswith(f".{_PARTS[0]}") for name in names):
        return {}
    return {_LAYOUT: layout, _VERSION: __version__, SPARSE: _utf8_json(listed)}


def _utf8_json(value: Any) -> str:
    """JSON in which a letter is one letter, whatever its alphabet."""
    return json.dumps(value, ensure_ascii=False)
