"""The process: run the command, and end it cleanly, by a signal too."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Any

from gradprune_jax._cli import group

# Those that end a run; Windows has no SIGHUP.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class _Ended(SystemExit):
    """The end of a run by a signal; its code is the exit status."""


def main() -> None:
    """Run the command; without the extra `cli`, say how to install it."""
    try:
        command = group.build()
    except ImportError as error:
        # Only the extra's own libraries: a broken module must not look like these.
        if (error.name or "").partition(".")[0] not in group.LIBRARIES:
            raise
        print(
            f'gradprune needs {error.name}: pip install "gradprune_jax[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    _end_cleanly()
    try:
        command(prog_name="gradprune")
    except _Ended as ended:
        # Not by sys.exit: it takes Python away from XLA's threads, which may still
        # compute, and crash then.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(int(ended.code or 1))


def _end_cleanly() -> None:
    """Make signals end the run by an exception, and silence the noise of threads."""
    for number in _SIGNALS:
        # What is ignored, as under nohup, stays so.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    sys.unraisablehook = _say_unraisable


def _end(number: int, frame: Any) -> None:
    """End the run by an exception, so that temporary files are removed."""
    del frame
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second signal must not stop the tidying
    raise _Ended(128 + number)


def _say_unraisable(unraisable: Any) -> None:
    """Print an error that cannot be raised, unless it is one that orbax leaves behind.

    Where one array is damaged, threads of tensorstore are still reading others when
    orbax has given up.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
