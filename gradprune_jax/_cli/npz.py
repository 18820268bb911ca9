"""NumPy's archives, array by array."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from gradprune_jax._cli.faults import words_of
from gradprune_jax._files import Spec, StoredArray, checked_shape, shortened


def open_npz(file: pathlib.Path) -> dict[str, StoredArray]:
    """Open the arrays of an archive by their headers; nothing is unpickled.

    Raises:
      ValueError: if the archive is damaged, or an array is none of numbers.
    """
    arrays = {}
    try:
        # Open as long as its arrays are wanted: its index is read once.
        archive = zipfile.ZipFile(file)
    except Exception as error:
        raise ValueError(f"is a damaged zip archive: {words_of(error)}.") from None
    members = [name for name in archive.namelist() if name.endswith(".npy")]
    if not members:
        raise ValueError("is a zip archive without NumPy arrays.")
    for member in members:
        name = member.removesuffix(".npy")
        shape, dtype, place = _read_header(archive, member, name)
        if dtype.kind in "US":
            continue  # a word about the run is no parameter
        _check_dtype(name, dtype)
        spec = Spec(checked_shape(name, shape), dtype.newbyteorder("="))
        held = archive.getinfo(member).file_size - place
        if held < spec.nbytes:
            raise ValueError(
                f"{name!r} is damaged: {spec.shape} of {dtype} are {spec.nbytes:,} "
                f"bytes, and it has {held:,}."
            )
        read = functools.partial(_read, archive, member, name, spec.dtype)
        arrays[name] = StoredArray(spec, read)
    return arrays


def _check_dtype(name: str, dtype: np.dtype) -> None:
    """Raise a ValueError if a dtype is none of numbers."""
    if dtype.kind in "biufc":
        return
    if dtype.names is not None or dtype.subdtype is not None:
        raise ValueError(
            f"{name!r} is an array of records, {shortened(dtype)}; save each field as "
            "an array of its own."
        )
    reason = {
        "V": "; NumPy's archives hold no bfloat16 and no 8-bit floats. Save it as "
        "safetensors.",
        "O": ", and objects are not unpickled. Save it as numbers.",
    }.get(dtype.kind, ", which is no number; leave it out.")
    raise ValueError(f"{name!r} has dtype {dtype}{reason}")


def _read_header(
    archive: zipfile.ZipFile, member: str, name: str
) -> tuple[tuple[int, ...], np.dtype, int]:
    """Read an array's header: its shape and dtype, and where its data begins."""
    with _unpacking(name), archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        return shape, dtype, stream.tell()


def _read(
    archive: zipfile.ZipFile, member: str, name: str, dtype: np.dtype
) -> np.ndarray:
    """Read one array, in C order."""
    with _unpacking(name), archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return np.asarray(array, dtype, order="C")


@contextlib.contextmanager
def _unpacking(name: str) -> Iterator[None]:
    """Turn errors of reading into one that names the damaged array."""
    try:
        yield
    except Exception as error:  # NumPy, zipfile and its four codecs have no common one
        raise ValueError(
            f"{name!r} is damaged: {shortened(words_of(error))}."
        ) from None
