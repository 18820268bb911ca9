"""`gradprune diff`: how far two checkpoints keep the same weights."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradprune_jax._cli import files, options
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.faults import CheckpointError
from gradprune_jax._files import StoredArray
from gradprune_jax._tables import printable


class _Overlap(NamedTuple):
    """The non-zeros of one parameter in two checkpoints."""

    path: str
    first: int
    second: int
    both: int

    @property
    def either(self) -> int:
        """What one of the two keeps, or both."""
        return self.first + self.second - self.both

    @property
    def fraction(self) -> float:
        """The Jaccard index: of what either keeps, what both keep; 1 of nothing."""
        return self.both / self.either if self.either else 1.0


@click.command()
@click.argument("first", type=options.CHECKPOINT)
@click.argument("second", type=options.CHECKPOINT)
@options.params_path
@options.as_json
def diff(
    first: pathlib.Path, second: pathlib.Path, params: str | None, as_json: bool
) -> None:
    """Compare the masks of FIRST and SECOND: where their parameters are not zero.

    The overlap of a parameter is the number of weights that both keep, divided by the
    number that either keeps.
    """
    one = open_checkpoint(first, params).named
    other = open_checkpoint(second, params).named
    only = {
        str(first): sorted(one.keys() - other),
        str(second): sorted(other.keys() - one),
    }
    shared = [name for name in one if name in other]
    if not shared:
        raise CheckpointError(f"{first} and {second} have no parameter in common.")
    for name in shared:
        if one[name].shape != other[name].shape:
            raise CheckpointError(
                f"{second}: {name!r} has shape {other[name].shape}, where {first} "
                f"has {one[name].shape}."
            )
    with (
        files.tracked({name: one[name] for name in shared}, first.name) as left,
        files.tracked({name: other[name] for name in shared}, second.name) as right,
    ):
        rows = _compare(left, right)
    if not rows:
        raise CheckpointError(f"{first} and {second} share no floating parameter.")
    total = _Overlap(
        "total",
        first=sum(row.first for row in rows),
        second=sum(row.second for row in rows),
        both=sum(row.both for row in rows),
    )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "parameters": list(map(_as_dict, rows)),
                    "total": _as_dict(total),
                    "only": only,
                }
            )
        )
        return
    Console().print(_table(rows, total))
    for file, names in only.items():
        if names:
            click.echo(printable(f"Only in {file}: {', '.join(names)}"))


def _compare(
    one: Mapping[str, StoredArray], other: Mapping[str, StoredArray]
) -> list[_Overlap]:
    """Count what floating parameters keep in one, in the other, and in both."""
    rows = []
    for name, array in one.items():
        if jnp.issubdtype(array.dtype, jnp.floating):
            left, right = array.read() != 0, other[name].read() != 0
            counts = (left.sum(), right.sum(), (left & right).sum())
            rows.append(_Overlap(name, *map(int, counts)))
    return rows


def _as_dict(row: _Overlap) -> dict[str, object]:
    """Return a row as a dictionary, ready for JSON."""
    return row._asdict() | {"overlap": row.fraction}


def _table(rows: Sequence[_Overlap], total: _Overlap) -> Table:
    """Draw the rows and their total."""
    table = Table()
    table.add_column("parameter", overflow="fold")
    for heading in ("first keeps", "second keeps", "both keep", "overlap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (*rows, total):
        if row is total:
            table.add_section()
        counts = (f"{count:,}" for count in (row.first, row.second, row.both))
        table.add_row(Text(printable(row.path)), *counts, f"{100 * row.fraction:.2f} %")
    return table
