"""`gradprune pack` and `unpack`: to a sparse file, and back."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import click

from gradprune_jax._cli import files, options, output
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.faults import blaming
from gradprune_jax._files import StoredArray, write_safetensors
from gradprune_jax._tables import printable
from gradprune_jax.export import save_sparse


@click.command()
@click.argument("checkpoint", type=options.CHECKPOINT)
@click.argument("out", type=options.FILE)
@click.option(
    "--max-density",
    type=float,
    default=0.9,
    show_default=True,
    callback=options.fraction,
    help="The fraction of non-zeros above which a parameter is stored dense.",
)
@options.params_path
@options.as_json
@options.force
def pack(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    max_density: float,
    params: str | None,
    as_json: bool,
    force: bool,
) -> None:
    """Write the parameters of CHECKPOINT to OUT as non-zeros and bit masks.

    OUT is a safetensors file for gradprune_jax.export.load_sparse, or a folder where
    CHECKPOINT is one of safetensors with its index.
    """
    files.check_free(out, force)
    opened = open_checkpoint(checkpoint, params)

    def write_file(
        file: pathlib.Path,
        arrays: Mapping[str, StoredArray],
        metadata: Mapping[str, str],
    ) -> None:
        save_sparse(
            file, arrays, max_density=max_density, metadata=metadata, overwrite=True
        )

    with (
        files.tracked(opened.arrays, checkpoint.name, passes=2) as arrays,
        blaming(checkpoint),
    ):
        opened = dataclasses.replace(opened, arrays=arrays)
        dense = output.dense_nbytes(opened, out)
        output.write_checkpoint(opened, out, force, write_file)
    size = output.nbytes(out)
    if as_json:
        summary = {"file": str(out), "dense_bytes": dense, "bytes": size}
        click.echo(json.dumps(summary | {"left_out": opened.left_out}))
        return
    files.say_left_out(opened)
    click.echo(
        f"Wrote {printable(str(out))}: {size:,} bytes, {100 * size / dense:.1f} % of "
        f"the dense {dense:,}"
    )


@click.command()
@click.argument("checkpoint", type=options.CHECKPOINT)
@click.argument("out", type=options.FILE)
@options.as_json
@options.force
def unpack(
    checkpoint: pathlib.Path, out: pathlib.Path, as_json: bool, force: bool
) -> None:
    """Write all arrays of CHECKPOINT, made by `pack`, to OUT as dense safetensors."""
    files.check_free(out, force)
    opened = open_checkpoint(checkpoint, params="/")
    with (
        files.tracked(opened.arrays, checkpoint.name) as arrays,
        blaming(checkpoint),
    ):
        opened = dataclasses.replace(opened, arrays=arrays)
        output.write_checkpoint(opened, out, force, _write_dense)
    if as_json:
        click.echo(json.dumps({"file": str(out), "bytes": output.nbytes(out)}))
    else:
        output.write_notice(out)


def _write_dense(
    file: pathlib.Path, arrays: Mapping[str, StoredArray], metadata: Mapping[str, str]
) -> None:
    """Write one dense file."""
    specs = {name: array.spec for name, array in arrays.items()}
    contents = ((name, array.read()) for name, array in arrays.items())
    write_safetensors(file, specs, contents, metadata)
