"""Faults of files: errors that name the file, what is wrong with it, and the fix."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

# What NumPy raises on damaged data; all that other readers raise is made a ValueError
# where they are called.
READ_ERRORS = (ValueError, OSError, MemoryError, OverflowError, RecursionError)


class CheckpointError(ValueError):
    """A file that cannot be used: which one, why, and what to do."""


@contextlib.contextmanager
def blaming(
    file: pathlib.Path, errors: tuple[type[Exception], ...] = (ValueError,)
) -> Iterator[None]:
    """Turn errors into a `CheckpointError` that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{file}: is nested too deeply.") from None
    except errors as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # names its file
        words = words_of(error)
        is_named = words.startswith(f"{file}: ")
        raise CheckpointError(words if is_named else f"{file}: {words}") from None


def words_of(error: Exception) -> str:
    """Return what an error says, or its name if it says nothing."""
    return str(error) or type(error).__name__
