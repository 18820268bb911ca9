"""safetensors files, read and written one array at a time.

The functions of the safetensors library hold all arrays in memory twice while they
write a file, and their reader for NumPy has no 8-bit floats. A file is a JSON header
with the place of every array, and the arrays: the library checks the header, and the
arrays are read and written here.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradprune_jax._files.atomic import naming
from gradprune_jax._files.stored import Spec, StoredArray, checked_shape

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}
# The entry of a header that is no array.
_METADATA = "__metadata__"
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def open_safetensors(
    file: pathlib.Path,
) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """Open a file: return its arrays, none of them read yet, and its metadata.

    Args:
      file: the file.

    Returns:
      The arrays by name, in the order of the file, and the metadata.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if safetensors is not installed.
      ValueError: if it is no safetensors file, or a damaged one, or holds a dtype that
        NumPy and ml_dtypes do not have.
    """
    safetensors = _import()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is no file.")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file}: is no safetensors file, or a damaged one: {error}."
        ) from None
    with naming(file), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop(_METADATA, None)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{file}: {name!r} is {entry['dtype']}, which JAX lacks.")
        dtype = jnp.dtype(_DTYPES[entry["dtype"]])
        try:
            spec = Spec(checked_shape(name, entry["shape"]), dtype)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; write the file again.") from None
        place = 8 + length + entry["data_offsets"][0]
        arrays[name] = StoredArray(
            spec, functools.partial(_read, file, place, spec), file
        )
    return arrays, metadata


def write_safetensors(
    file: pathlib.Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Write arrays to a file as they come, with one of them in memory at a time.

    Args:
      file: the file; one that exists is overwritten.
      specs: the shapes and dtypes of all arrays by name, which decide their places.
      arrays: each of them with its name, in any order.
      metadata: texts to keep in the header.

    Raises:
      ValueError: if safetensors has no such dtype, or an array is not what its spec
        says.
    """
    text, places = _header(specs, metadata)
    begin = 8 + len(text)
    with naming(file), file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays:
            if Spec(array.shape, array.dtype) != specs[name]:
                raise ValueError(f"{name!r} has changed while it was being written.")
            stream.seek(begin + places.pop(name))
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            stream.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    if places:
        raise ValueError(f"{sorted(places)} were never given.")


def safetensors_nbytes(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> int:
    """Return the bytes of the file that `write_safetensors` would make."""
    text, _ = _header(specs, metadata)
    return 8 + len(text) + sum(spec.nbytes for spec in specs.values())


def entry_nbytes(name: str, spec: Spec, begin: int) -> int:
    """Return the bytes that one array adds to a file, with its entry in the header.

    Args:
      name: of the array.
      spec: its shape and dtype.
      begin: its place in the file, which the header holds in decimal digits.
    """
    return spec.nbytes + len(_dumped({name: _entry(spec, begin)})) - 1  # a comma


def check_storable(specs: Mapping[str, Spec]) -> None:
    """Raise a ValueError if safetensors cannot hold the name or dtype of an array."""
    for name, spec in specs.items():
        if not is_utf8(name):
            raise ValueError(
                f"{name!r} has a lone surrogate, which UTF-8 does not hold; rename it."
            )
        if name == _METADATA:
            raise ValueError(f"{name!r} is a name of safetensors' own; rename it.")
        if spec.dtype.name not in _NAMES:
            raise ValueError(
                f"{name!r} is {spec.dtype}, which safetensors does not hold."
            )


def is_utf8(text: str) -> bool:
    """Whether a text can be written: half of a pair of surrogates cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _header(
    specs: Mapping[str, Spec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a file, and where each array begins after the header."""
    check_storable(specs)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    places = {}
    end = 0
    # Wide elements first, so that each array is aligned, as readers that map the file
    # into memory want it.
    for name, spec in sorted(specs.items(), key=_by_width):
        header[name] = _entry(spec, end)
        places[name], end = end, end + spec.nbytes
    text = _dumped(header)
    return text + b" " * (-len(text) % 8), places


def _entry(spec: Spec, begin: int) -> dict[str, Any]:
    """Return the header's entry of an array that begins at a place."""
    return {
        "dtype": _NAMES[spec.dtype.name],
        "shape": list(spec.shape),
        "data_offsets": [begin, begin + spec.nbytes],
    }


def _dumped(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _by_width(item: tuple[str, Spec]) -> tuple[int, str]:
    name, spec = item
    return -spec.dtype.itemsize, name


def _read(file: pathlib.Path, place: int, spec: Spec) -> np.ndarray:
    """Read the array that begins at a place of a file."""
    array = np.empty(spec.shape, spec.dtype)
    with naming(file), file.open("rb") as stream:
        stream.seek(place)
        if stream.readinto(array.reshape(-1).view(np.uint8).data) != spec.nbytes:
            raise ValueError(f"{file}: has become shorter while it was being read.")
    return array


def _import() -> Any:
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            'sparse files need safetensors: pip install "gradprune_jax[export]"'
        ) from None
    return safetensors
