"""Files of commands: a progress bar while they are read, and what is said of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import click
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from gradprune_jax._cli.checkpoints import Checkpoint
from gradprune_jax._files import StoredArray
from gradprune_jax._tables import printable

Key = TypeVar("Key", bound=Hashable)

# Below this nothing takes long enough to be worth a bar.
_LARGE = 100e6


def check_free(file: pathlib.Path, force: bool) -> None:
    """Raise a usage error if a file, or a broken link, exists, unless forced."""
    if os.path.lexists(file) and not force:
        raise click.UsageError(
            f"{printable(str(file))} exists already; give --force to overwrite, or "
            "another name."
        )


def say_left_out(checkpoint: Checkpoint) -> None:
    """Print what a checkpoint holds besides its parameters."""
    if checkpoint.left_out:
        names = printable(", ".join(checkpoint.left_out))
        click.echo(f"Left out, as no parameters: {names} (--params / takes all).")


@contextlib.contextmanager
def tracked(
    arrays: Mapping[Key, StoredArray], what: str, passes: int = 1
) -> Iterator[dict[Key, StoredArray]]:
    """Show a progress bar while arrays are read, if they are large.

    Args:
      arrays: by name or path.
      what: the text beside the bar.
      passes: how often each array will be read.

    Yields:
      The same arrays, whose reading moves the bar.
    """
    total = passes * sum(array.spec.nbytes for array in arrays.values())
    if total < _LARGE:
        yield dict(arrays)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bars:
        task = bars.add_task(printable(what), total=total)

        def counted(array: StoredArray) -> Callable[[], np.ndarray]:
            def read() -> np.ndarray:
                values = array.read()
                bars.advance(task, array.spec.nbytes)
                return values

            return read

        yield {
            name: dataclasses.replace(array, read=counted(array))
            for name, array in arrays.items()
        }
