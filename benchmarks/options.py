"""Options that several programs have."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import click

quick = click.option(
    "--quick", is_flag=True, help="Tiny sizes, to try it out in a minute."
)
publish = click.option(
    "--publish",
    is_flag=True,
    help="Go on with the records of this repository, and put the table into "
    "benchmarks/README.md.",
)


def data_dir(content: str) -> Callable[[Any], Any]:
    """The folder of the data, with what it may hold."""
    return click.option(
        "--data-dir",
        type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
        help=f"The folder of the data, in place of what is bundled: {content}.",
    )


def out(folder: str) -> Callable[[Any], Any]:
    """The folder of the results, by default this one."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=pathlib.Path),
        default=folder,
        show_default=True,
        help="The folder for records, checkpoints, tables and pictures.",
    )
