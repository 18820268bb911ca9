"""Files and folders, written as a whole or not at all, and errors that name them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence


def check_free(file: pathlib.Path, overwrite: bool) -> None:
    """Raise an error if a file, or a broken link, exists and may not be replaced."""
    if os.path.lexists(file) and not overwrite:
        raise FileExistsError(
            f"{file}: exists already; give overwrite=True to replace it."
        )


@contextlib.contextmanager
def replacing(file: pathlib.Path, overwrite: bool = True) -> Iterator[pathlib.Path]:
    """Write a file by way of a temporary one, which takes its place if all goes well.

    Args:
      file: to write.
      overwrite: whether it replaces a file that exists by then.

    Yields:
      The temporary file, empty, in the folder of `file`. If the block fails, it is
      removed, and `file` is as it was.

    Raises:
      FileExistsError: if `file` exists by then and may not be replaced.
      OSError: if it cannot be written; the error names `file`.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "numbers.txt"
      ...     with replacing(file) as temporary:
      ...         _ = temporary.write_text("1 2 3")
      ...     file.read_text()
      '1 2 3'
    """
    if file.exists() and not file.is_file():
        raise OSError(f"{file}: is no file, and is not replaced.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{file}: {file.parent} is no folder; make it first.")
    temporary = _beside(file)
    with naming(file, temporary):
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            _place(temporary, file, overwrite)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(
    folder: pathlib.Path, overwrite: bool, content: Sequence[str]
) -> Iterator[pathlib.Path]:
    """Write a folder by way of a temporary one, which takes its place if all goes well.

    Args:
      folder: to write.
      overwrite: whether it replaces a folder that exists by then.
      content: patterns of the names that a folder to be replaced may hold; one with
        anything else in it is not.

    Yields:
      The temporary folder, empty, beside `folder`. If the block fails, it is removed,
      and `folder` is as it was.

    Raises:
      FileExistsError: if `folder` exists by then and may not be replaced.
      OSError: if it cannot be written; the error names `folder`.
    """
    if not folder.name:
        raise OSError(f"{folder}: has no name of its own; give a new one.")
    _check_replaceable(folder, content)
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"{folder}: {folder.parent} is no folder; make it first."
        )
    temporary = _beside(folder)
    with naming(folder, temporary):
        try:
            temporary.mkdir()
            yield temporary
            _place_folder(temporary, folder, overwrite)
        finally:
            _remove(temporary)


@contextlib.contextmanager
def naming(file: pathlib.Path, *others: pathlib.Path) -> Iterator[None]:
    """Make errors of the system name `file` instead of no file, or of the others."""
    try:
        yield
    except OSError as error:
        named = pathlib.Path(os.fsdecode(error.filename or file))
        is_foreign = named != file and not any(map(named.is_relative_to, others))
        if error.errno is None or is_foreign:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from None


def _place(temporary: pathlib.Path, file: pathlib.Path, overwrite: bool) -> None:
    """Give a temporary file its final name; the temporary name may stay beside it."""
    if overwrite:
        os.replace(temporary, file)
        return
    try:
        try:
            os.link(temporary, file)  # unlike a renaming, it replaces nothing
        except FileExistsError:
            raise
        except OSError:  # no hard links here: claim the name, then replace the claim
            file.touch(exist_ok=False)
            os.replace(temporary, file)
    except FileExistsError:
        raise FileExistsError(
            f"{file}: has appeared in the meantime, and is not replaced."
        ) from None


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Return a free name in the same folder.

    A short one: that of `path` may be as long as the file system allows.
    """
    return path.parent / f".gradprune-{secrets.token_hex(8)}"


def _check_replaceable(folder: pathlib.Path, content: Sequence[str]) -> None:
    """Raise an error if something exists that holds more than it may."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise OSError(f"{folder}: is no folder, and is not replaced by one.")
    for each in sorted(folder.iterdir()):
        is_known = any(map(each.match, content)) and not each.is_dir()
        if not is_known:
            raise OSError(
                f"{folder}: holds {each.name!r}, which would be lost, and is not "
                "replaced; choose another name."
            )


def _place_folder(
    temporary: pathlib.Path, folder: pathlib.Path, overwrite: bool
) -> None:
    """Give a temporary folder its final name, and remove what had it before."""
    if not os.path.lexists(folder):
        temporary.rename(folder)
        return
    if not overwrite:
        raise FileExistsError(
            f"{folder}: has appeared in the meantime, and is not replaced."
        )
    before = _beside(folder)
    try:
        folder.rename(before)
        temporary.rename(folder)
        _remove(before)
    except BaseException:  # a signal may come between any two of them
        if not os.path.lexists(folder):
            before.rename(folder)
        _remove(before)
        raise


def _remove(folder: pathlib.Path) -> None:
    """Remove a folder, if it is there, to the end also if a signal comes."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
