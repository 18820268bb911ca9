"""Files that are written as a whole or not at all, and errors that name them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


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
    # A short name: that of `file` may be as long as the file system allows.
    temporary = file.parent / f".gradprune-{secrets.token_hex(8)}"
    with naming(file, temporary):
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            _place(temporary, file, overwrite)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(file: pathlib.Path, *others: pathlib.Path) -> Iterator[None]:
    """Make errors of the system name `file` instead of no file, or of the others."""
    try:
        yield
    except OSError as error:
        is_foreign = str(error.filename) not in map(str, (None, *others))
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
