"""Files that are there as a whole or not at all, and errors that name them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator, Sequence


def check_free(file: pathlib.Path, overwrite: bool) -> None:
    """Refuses to replace a file, or a link to nothing, without being told to."""
    if os.path.lexists(file) and not overwrite:
        raise FileExistsError(
            f"{file}: exists already; give overwrite=True to replace it."
        )


@contextlib.contextmanager
def replacing(file: pathlib.Path, overwrite: bool = True) -> Iterator[pathlib.Path]:
    """A temporary file beside `file`, which takes its place if all goes well.

    Args:
      file: to write.
      overwrite: whether it replaces a file that is there by then.

    Yields:
      The temporary file, empty.

    Raises:
      FileExistsError: if there is a file by then, which may not be replaced.
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
    with replacing_all([file], overwrite) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(
    files: Sequence[pathlib.Path], overwrite: bool = True
) -> Iterator[list[pathlib.Path]]:
    """Temporary files that take the places of `files` together; see `replacing`."""
    with contextlib.ExitStack() as stack:
        temporaries = [stack.enter_context(_temporary(file)) for file in files]
        yield temporaries
        placed: list[pathlib.Path] = []
        try:
            for temporary, file in zip(temporaries, files, strict=True):
                with naming(file, temporary):
                    _place(temporary, file, overwrite)
                placed.append(file)
        except BaseException:
            for file in placed if not overwrite else ():
                file.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def making(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, and those above it; they are gone again if the block fails."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in missing:
            with contextlib.suppress(OSError):  # another run has files in it by now
                each.rmdir()
        raise


@contextlib.contextmanager
def naming(file: pathlib.Path, *others: pathlib.Path) -> Iterator[None]:
    """Errors of the system that name no file, or one of the others, name this one."""
    try:
        yield
    except OSError as error:
        is_foreign = str(error.filename) not in map(str, (None, *others))
        if error.errno is None or is_foreign:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from None


@contextlib.contextmanager
def _temporary(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty file beside `file`, which is gone after the block."""
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
        finally:
            temporary.unlink(missing_ok=True)


def _place(temporary: pathlib.Path, file: pathlib.Path, overwrite: bool) -> None:
    """Gives a temporary file its name; both names may be there afterwards."""
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
