"""The console command ``gradprune``."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

# Those that the extra brings; without one of them no command is offered.
_LIBRARIES = ("click", "matplotlib", "rich", "safetensors", "zstandard")


def main() -> None:
    """Runs the command; without the extra ``cli``, says how to install it."""
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
    group(prog_name="gradprune")


def build() -> click.Group:
    """The command with its subcommands.

    Returns:
      A click group. Exit status 2 on bad usage, 1 on bad data.

    Raises:
      ImportError: if click or another library of the extra ``cli`` is missing.
    """
    import click

    for library in _LIBRARIES:
        importlib.import_module(library)  # a run must not find out at its end
    import gradprune_jax
    from gradprune_jax._cli import diff, pack, plan, prune, report
    from gradprune_jax._cli.checkpoints import CheckpointError
    from gradprune_jax.demo import command
    from gradprune_jax.demo.data import DataError

    class Group(click.Group):
        """Ends with one line and status 1 where data or files are at fault."""

        def invoke(self, ctx: click.Context) -> Any:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # click ends quietly when the reader of a pipe has gone
            except (CheckpointError, DataError, OSError) as error:
                click.echo(f"error: {' '.join(str(error).split())}", err=True)
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
