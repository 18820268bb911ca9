"""The command with its subcommands, and what is printed when one fails."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

# Those that the extra brings; without one of them no command is offered.
LIBRARIES = ("click", "matplotlib", "rich", "safetensors", "zstandard")


def build() -> click.Group:
    """Build the command with its subcommands.

    Returns:
      A click group. Exit status 2 on bad usage, 1 on bad data.

    Raises:
      ImportError: if click or another library of the extra `cli` is missing.
    """
    import click

    for library in LIBRARIES:
        importlib.import_module(library)  # a run must not find out at its end
    import gradprune_jax
    from gradprune_jax._cli import demo, diff, pack, plan, prune, report
    from gradprune_jax._cli.faults import CheckpointError
    from gradprune_jax._tables import printable
    from gradprune_jax.demo import data

    class Group(click.Group):
        """Ends with one line and status 1 where data or files are at fault."""

        def invoke(self, ctx: click.Context) -> Any:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # click ends quietly when the reader of a pipe has gone
            except (CheckpointError, data.DataError, OSError) as error:
                message = printable(" ".join(_plain(error).split()))
                click.echo(f"error: {message}", err=True)
                ctx.exit(1)

    group = Group(
        "gradprune",
        help="Gradual magnitude pruning for JAX.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for each in (
        demo.demo,
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


def _plain(error: Exception) -> str:
    """Format an error for one line; of the system's, the file and what is wrong."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    words = f"{error.strerror[0].lower()}{error.strerror[1:]}."
    return words if error.filename is None else f"{error.filename}: {words}"
