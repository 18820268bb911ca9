"""`gradprune report`: how sparse a checkpoint is, its pattern, and its bytes."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any, NamedTuple

import click
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Column, Table

import gradprune_jax as gp
from gradprune_jax import report as pictures
from gradprune_jax._cli import files, options
from gradprune_jax._cli.checkpoints import Checkpoint, open_checkpoint
from gradprune_jax._cli.faults import CheckpointError
from gradprune_jax._cli.output import write_notice
from gradprune_jax._files import StoredArray, replacing
from gradprune_jax._tables import Row, draw_table, printable, sparsity_of
from gradprune_jax._tables import as_json as rows_as_json
from gradprune_jax.export import LeafStorage, StorageReport, storage_report

_PICTURES = (".png", ".svg", ".pdf")


class _Measured(NamedTuple):
    """What is said of one parameter.

    Attributes:
      storage: its non-zeros and bytes.
      dead_channels: how many output channels are zero; None without channels.
    """

    storage: LeafStorage
    dead_channels: int | None

    @property
    def row(self) -> Row:
        """Its row in the table, where -0.0 is zero."""
        leaf = self.storage
        nonzero = leaf.nonzero - leaf.negative_zeros
        return Row(leaf.path, leaf.shape, leaf.dtype, nonzero)


@click.command()
@click.argument("checkpoint", type=options.CHECKPOINT)
@click.option(
    "--pattern",
    metavar="N:M",
    callback=options.pattern,
    default="2:4",
    show_default=True,
    help="The N:M of which to say how many groups keep it.",
)
@click.option("--axis", type=int, help="Of the groups, by default a layer's inputs.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Draw the sparsity of each parameter into this file (.png, .svg, .pdf).",
)
@click.option(
    "--compress/--no-compress",
    default=True,
    show_default=True,
    help="Find what gzip and zstd make of the dense arrays: half a minute a gigabyte.",
)
@options.params_path
@options.as_json
@options.force
def report(
    checkpoint: pathlib.Path,
    pattern: gp.NM,
    axis: int | None,
    plot: pathlib.Path | None,
    compress: bool,
    params: str | None,
    as_json: bool,
    force: bool,
) -> None:
    """Say how sparse each parameter of CHECKPOINT is, and what they weigh.

    CHECKPOINT is an orbax folder, safetensors (sparse or dense, one file, or an index
    or folder of several), npz or Flax msgpack.
    """
    if plot is not None:
        files.check_free(plot, force)
        _check_picture(plot)
    opened = open_checkpoint(checkpoint, params)
    inputs, outputs = (1, 0) if opened.is_torch else (-2, -1)
    pattern = gp.NM(pattern.keep, pattern.of, inputs if axis is None else axis)
    dead: dict[str, int | None] = {}
    with files.tracked(_floating(opened), checkpoint.name) as arrays:
        each = {
            name: StoredArray(
                array.spec, functools.partial(_read, name, array, outputs, dead)
            )
            for name, array in arrays.items()
        }
        storage = storage_report(each, pattern=pattern, compress=compress)
    measured = [_Measured(leaf, dead[leaf.path]) for leaf in storage.leaves]
    if as_json:
        click.echo(json.dumps(_as_dict(opened, measured, storage)))
    else:
        _print(measured, storage)
    if plot is not None:
        _draw(plot, measured, force)
        if not as_json:
            write_notice(plot)


def _read(
    name: str, array: StoredArray, axis: int, dead: dict[str, int | None]
) -> np.ndarray:
    """Read an array, and note how many dead channels it has; None without channels."""
    values = array.read()
    dead[name] = None
    if values.ndim >= 2 and values.size:
        dead[name] = len(gp.dead_channels({name: values}, axis).get(name, ()))
    return values


def _floating(checkpoint: Checkpoint) -> dict[str, StoredArray]:
    """Return the floating parameters by name."""
    arrays = {
        name: array
        for name, array in checkpoint.named.items()
        if jnp.issubdtype(array.dtype, jnp.floating)
    }
    if not arrays:
        raise CheckpointError(f"{checkpoint.file}: holds no floating parameters.")
    return arrays


def _check_picture(file: pathlib.Path) -> None:
    """Raise a usage error, before minutes of reading, if a picture has no place."""
    if file.suffix.lower() not in _PICTURES:
        raise click.BadParameter(
            f"{file} must end in one of {', '.join(_PICTURES)}.", param_hint="--plot"
        )
    if not file.absolute().parent.is_dir():
        raise click.BadParameter(f"{file.parent} is no folder.", param_hint="--plot")


def _draw(file: pathlib.Path, measured: list[_Measured], force: bool) -> None:
    """Write the picture, in the format of its ending."""
    fractions = {printable(each.row.path): sparsity_of([each.row]) for each in measured}
    fractions["total"] = sparsity_of([each.row for each in measured])
    kind = file.suffix.removeprefix(".").lower()
    with replacing(file, force) as temporary:
        pictures.plot_sparsity(fractions).savefig(temporary, format=kind)


def _as_dict(
    checkpoint: Checkpoint, measured: list[_Measured], storage: StorageReport
) -> dict[str, Any]:
    """Return the report as a dictionary, ready for JSON."""
    summary = rows_as_json([each.row for each in measured])
    for entry, each in zip(summary["parameters"], measured, strict=True):
        entry["in_pattern"] = each.storage.in_pattern
        entry["dead_channels"] = each.dead_channels
        entry["negative_zeros"] = each.storage.negative_zeros
        entry["bytes"] = each.storage.nbytes
    summary["total"]["bytes"] = storage.total
    packed = {"gzip": storage.gzip, "zstd": storage.zstd}
    pattern = {"n": storage.pattern.keep, "m": storage.pattern.of}
    return {
        "file": str(checkpoint.file),
        "left_out": checkpoint.left_out,
        "pattern": pattern | {"axis": storage.pattern.axis},
        **summary,
        "compressed_bytes": packed,
    }


def _print(measured: list[_Measured], storage: StorageReport) -> None:
    """Print the tables, and a line on zeros that are -0.0."""
    console = Console()
    console.print(_sparsity_table(measured, storage.pattern))
    console.print(_storage_table(storage))
    negative = sum(leaf.negative_zeros for leaf in storage.leaves)
    if negative:
        click.echo(
            f"{negative:,} zeros are -0.0, as weight * mask leaves them: sparse "
            "layouts store these as values."
        )


def _sparsity_table(measured: list[_Measured], pattern: gp.NM) -> Table:
    """Draw how sparse each parameter is, and how well it keeps the pattern."""
    name = f"{pattern.keep}:{pattern.of}"
    in_pattern = [
        "" if leaf.in_pattern is None else f"{100 * leaf.in_pattern:.1f} %"
        for leaf in (each.storage for each in measured)
    ]
    dead = [
        "" if each.dead_channels is None else f"{each.dead_channels:,}"
        for each in measured
    ]
    return draw_table(
        [each.row for each in measured],
        more=[
            (Column(name, justify="right", no_wrap=True), in_pattern),
            (Column("dead", justify="right", no_wrap=True), dead),
        ],
    )


def _storage_table(storage: StorageReport) -> Table:
    """Draw the bytes of all parameters in each layout."""
    names = {
        "dense": "dense",
        "bitmask": "bit mask",
        "csr": "CSR",
        "coo": "COO",
        "nm": f"{storage.pattern.keep}:{storage.pattern.of} packed",
    }
    sizes = {names[layout]: size for layout, size in storage.total.items()}
    packed = {"dense, gzip": storage.gzip, "dense, zstd": storage.zstd}
    sizes |= {name: size for name, size in packed.items() if size is not None}
    table = Table("stored as")
    table.add_column("bytes", justify="right")
    table.add_column("of dense", justify="right")
    for name, size in sizes.items():
        share = size / max(sizes["dense"], 1)
        table.add_row(name, f"{size:,}", f"{100 * share:.1f} %")
    return table
