"""The console command `gradprune`."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

# Those that the extra brings; without one of them no command is offered.
_LIBRARIES = ("click", "matplotlib", "rich", "safetensors", "zstandard")

# Those that end a run; Windows has no SIGHUP.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]


class _Ended(SystemExit):
    """The end of a run by a signal; its code is the exit status."""


def main() -> None:
    """Runs the command; without the extra `cli`, says how to install it."""
    try:
        group = build()
    except ImportError as error:
        # Only the extra's own libraries: a broken module must not look like these.
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        print(
            f'gradprune needs {error.name}: pip install "gradprune_jax[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    _end_cleanly()
    try:
        group(prog_name="gradprune")
    except _Ended as ended:
        # Not by sys.exit: it takes Python away from XLA's threads, which may still
        # compute, and crash then.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(int(ended.code or 1))


def _end_cleanly() -> None:
    """Lets a run that is ended tidy up, and one that fails say so and no more."""
    for number in _SIGNALS:
        # What is ignored, as under nohup, stays so.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    sys.unraisablehook = _say_unraisable


def _end(number: int, frame: Any) -> None:
    """Ends the run by an exception, so that temporary files are removed."""
    del frame
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the tidying is not ended too
    raise _Ended(128 + number)


def _say_unraisable(unraisable: Any) -> None:
    """Says what cannot be raised, but not what orbax leaves in tensorstore's threads.

    Where one array is damaged, others are still being read when orbax has given up.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _plain(error: Exception) -> str:
    """What an error says; of the system's, the file and what is wrong with it."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    words = f"{error.strerror[0].lower()}{error.strerror[1:]}."
    return words if error.filename is None else f"{error.filename}: {words}"


def build() -> click.Group:
    """The command with its subcommands.

    Returns:
      A click group. Exit status 2 on bad usage, 1 on bad data.

    Raises:
      ImportError: if click or another library of the extra `cli` is missing.
    """
    import click

    for library in _LIBRARIES:
        importlib.import_module(library)  # a run must not find out at its end
    import gradprune_jax
    from gradprune_jax._cli import diff, pack, plan, prune, report
    from gradprune_jax._cli.checkpoints import CheckpointError
    from gradprune_jax.demo import command
    from gradprune_jax.demo.data import DataError
    from gradprune_jax.report.table import printable

    class Group(click.Group):
        """Ends with one line and status 1 where data or files are at fault."""

        def invoke(self, ctx: click.Context) -> Any:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # click ends quietly when the reader of a pipe has gone
            except (CheckpointError, DataError, OSError) as error:
                message = printable(" ".join(_plain(error).split()))
                click.echo(f"error: {message}", err=True)
                ctx.exit(1)

    group = Group(
        "gradprune",
        help="Gradual magnitude pruning for JAX.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for each in (
        command.demo,
        plan.plan,
        report.report,
        prune.prune,
        pack.pack,
        pack.unpack,
        diff.diff,
    ):
        group.add_command(each)
    return click.version_option(
        gradprune_jax.__version__, message="gradprune_jax %(version)s"
    )(group)
