"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


def check_free(file: pathlib.Path, overwrite: bool) -> None:
    """Refuses to replace a file without being told to."""
    if file.exists() and not overwrite:
        raise FileExistsError(
            f"{file}: exists already; give overwrite=True to replace it."
        )


@contextlib.contextmanager
def replacing(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary file beside `file`, which takes its place if all goes well.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder) / "numbers.txt"
      ...     with replacing(file) as temporary:
      ...         _ = temporary.write_text("1 2 3")
      ...     file.read_text()
      '1 2 3'
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
