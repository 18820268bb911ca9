"""safetensors files, read and written one array at a time.

The library's own functions hold a file's arrays in memory twice while they write it,
and NumPy's reader has no 8-bit floats. The format is a JSON header with the place of
every array; the library checks it, and the arrays are read and written here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gradprune_jax._files.atomic import naming

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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# More weights, or axes, than any array has; a file that says so is damaged.
_SIZE, _AXES = 2**48, 64


class Spec(NamedTuple):
    """What an array will be.

    Attributes:
      shape: of the array.
      dtype: of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def checked_shape(name: str, shape: Iterable[Any]) -> tuple[int, ...]:
    """The shape that a file says an array has.

    Raises:
      ValueError: if no array has such a shape.
    """
    lengths = tuple(shape)
    if not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError(
            f"the shape of {name!r} is {shortened(lengths)}; it must be integers of 0 "
            "or more"
        )
    # An axis of length 0 makes no other one plausible.
    size = math.prod(max(length, 1) for length in lengths)
    if size >= _SIZE or len(lengths) > _AXES:
        said = shortened(lengths)
        raise ValueError(f"the shape of {name!r} is {said}, which no array has")
    return lengths


def shortened(said: Any) -> str:
    """What a file says, cut where it would fill the screen."""
    text = str(said)
    return text if len(text) <= 80 else f"{text[:80]}..."


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array that is read when it is wanted, and not before.

    Attributes:
      spec: its shape and dtype.
      read: reads it.
    """

    spec: Spec
    read: Callable[[], np.ndarray]


def open_file(file: pathlib.Path) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """The arrays of a file, none of them read yet, and its metadata.

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
    header.pop("__metadata__", None)
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
        arrays[name] = StoredArray(spec, functools.partial(_read, file, place, spec))
    return arrays, metadata


def write(
    file: pathlib.Path,
    specs: Mapping[str, Spec],
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes arrays as they come, each at the place that its size gives it.

    Args:
      file: to write, or to write over.
      specs: the shapes and dtypes of all arrays by name.
      arrays: each of them with its name, in any order.
      metadata: what the header says besides.

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


def nbytes(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> int:
    """The bytes of the file that `write` would make."""
    text, _ = _header(specs, metadata)
    return 8 + len(text) + sum(spec.nbytes for spec in specs.values())


def entry_nbytes(name: str, spec: Spec, begin: int) -> int:
    """The bytes that one array adds to a file: its own, and its entry's in the header.

    Args:
      name: of the array.
      spec: its shape and dtype.
      begin: its place, whose digits stand in the header.
    """
    return spec.nbytes + len(_dumped({name: _entry(spec, begin)})) - 1  # a comma


def check_storable(specs: Mapping[str, Spec]) -> None:
    """Refuses arrays of which safetensors does not hold the name or the dtype."""
    for name, spec in specs.items():
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ValueError(
                f"{name!r} has a lone surrogate, which UTF-8 does not hold; rename it."
            )
        if spec.dtype.name not in _NAMES:
            raise ValueError(
                f"{name!r} is {spec.dtype}, which safetensors does not hold."
            )


def _header(
    specs: Mapping[str, Spec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header of a file, and the places of its arrays after the header."""
    check_storable(specs)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
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
    """What the header says of an array at a place."""
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
    """The array at a place of a file."""
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
