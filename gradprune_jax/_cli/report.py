"""`gradprune report`: how sparse a checkpoint is, its pattern, and its bytes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Column, Table

import gradprune_jax as gp
from gradprune_jax import report as pictures
from gradprune_jax._cli import files, options, rows
from gradprune_jax._cli.checkpoints import Checkpoint, CheckpointError, open_checkpoint
from gradprune_jax._files.atomic import replacing
from gradprune_jax._files.safetensors import StoredArray
from gradprune_jax.export.bitmask import nonzero_bits
from gradprune_jax.export.storage import StorageReport, measure
from gradprune_jax.report.table import Row, draw_table, printable, sparsity_of

_PICTURES = (".png", ".svg", ".pdf")


class _Measured(NamedTuple):
    """What is said of one parameter.

    Attributes:
      row: its size and non-zeros.
      in_pattern: the fraction of its groups of M that have no more than N non-zeros;
        None if groups do not fit it.
      dead_channels: output channels of which nothing is left; None without channels.
      negative_zeros: the number of -0.0, which sparse layouts store as values.
    """

    row: Row
    in_pattern: float | None
    dead_channels: int | None
    negative_zeros: int


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

    CHECKPOINT is an orbax folder, safetensors (sparse or dense), npz or Flax msgpack.
    """
    if plot is not None:
        files.check_free(plot, force)
        _check_picture(plot)
    opened = open_checkpoint(checkpoint, params)
    inputs, outputs = (1, 0) if opened.is_torch else (-2, -1)
    pattern = gp.NM(pattern.keep, pattern.of, inputs if axis is None else axis)
    measured: list[_Measured] = []
    with files.tracked(_floating(opened), checkpoint.name) as arrays:
        each = _measured(arrays, pattern, outputs, measured)
        storage = measure(each, pattern, compress)
    if as_json:
        click.echo(json.dumps(_as_dict(opened, measured, storage)))
    else:
        _print(measured, storage)
    if plot is not None:
        _draw(plot, measured, force)
        if not as_json:
            files.write_notice(plot)


def _floating(checkpoint: Checkpoint) -> dict[str, StoredArray]:
    """The parameters that can be sparse."""
    arrays = {
        name: array
        for name, array in checkpoint.named.items()
        if jnp.issubdtype(array.spec.dtype, jnp.floating)
    }
    if not arrays:
        raise CheckpointError(f"{checkpoint.file}: holds no floating parameters.")
    return arrays


def _check_picture(file: pathlib.Path) -> None:
    """Refuses a picture that cannot be written before minutes of reading."""
    if file.suffix.lower() not in _PICTURES:
        raise click.BadParameter(
            f"{file} must end in one of {', '.join(_PICTURES)}.", param_hint="--plot"
        )
    if not file.absolute().parent.is_dir():
        raise click.BadParameter(f"{file.parent} is no folder.", param_hint="--plot")


def _measured(
    arrays: Mapping[str, StoredArray],
    pattern: gp.NM,
    outputs: int,
    measured: list[_Measured],
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays one by one, each measured as it comes by."""
    for name, array in arrays.items():
        values = array.read()
        mask = values != 0
        nonzero = int(mask.sum())
        row = Row(name, array.spec.shape, array.spec.dtype, nonzero)
        negative = int(np.count_nonzero(nonzero_bits(values))) - nonzero
        dead = _dead(mask, outputs)
        measured.append(_Measured(row, _in_pattern(mask, pattern), dead, negative))
        yield name, values


def _in_pattern(mask: np.ndarray, pattern: gp.NM) -> float | None:
    """The fraction of groups that have no more than N non-zeros."""
    ndim, axis = mask.ndim, pattern.axis
    if ndim < 2 or not -ndim <= axis < ndim or not mask.size:
        return None
    if mask.shape[axis] % pattern.of:
        return None
    groups = np.moveaxis(mask, axis, -1).reshape(-1, pattern.of)
    return float((groups.sum(axis=-1) <= pattern.keep).mean())


def _dead(mask: np.ndarray, axis: int) -> int | None:
    """The channels on an axis of which nothing is left; None if it has none."""
    if mask.ndim < 2 or not mask.size:
        return None
    lives = np.moveaxis(mask, axis, 0).reshape(mask.shape[axis], -1).any(axis=1)
    return int((~lives).sum())


def _draw(file: pathlib.Path, measured: list[_Measured], force: bool) -> None:
    """Writes the picture; which kind, its ending says."""
    fractions = {printable(each.row.path): sparsity_of([each.row]) for each in measured}
    fractions["total"] = sparsity_of([each.row for each in measured])
    kind = file.suffix.removeprefix(".").lower()
    with replacing(file, force) as temporary:
        pictures.plot_sparsity(fractions).savefig(temporary, format=kind)


def _as_dict(
    checkpoint: Checkpoint, measured: list[_Measured], storage: StorageReport
) -> dict[str, Any]:
    """The report as JSON holds it."""
    summary = rows.as_dict([each.row for each in measured])
    for entry, each, leaf in zip(
        summary["parameters"], measured, storage.leaves, strict=True
    ):
        entry["in_pattern"] = each.in_pattern
        entry["dead_channels"] = each.dead_channels
        entry["negative_zeros"] = each.negative_zeros
        entry["bytes"] = leaf.nbytes
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
    """The tables, and what may surprise in them."""
    console = Console()
    console.print(_sparsity_table(measured, storage.pattern))
    console.print(_storage_table(storage))
    negative = sum(each.negative_zeros for each in measured)
    if negative:
        click.echo(
            f"{negative:,} zeros are -0.0, as weight * mask leaves them: sparse "
            "layouts store these as values."
        )


def _sparsity_table(measured: list[_Measured], pattern: gp.NM) -> Table:
    """What each parameter keeps."""
    name = f"{pattern.keep}:{pattern.of}"
    in_pattern = [
        "" if each.in_pattern is None else f"{100 * each.in_pattern:.1f} %"
        for each in measured
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
    """What all parameters weigh in each layout."""
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
