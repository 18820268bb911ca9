"""`gradprune pack` and `unpack`: to a sparse file, and back."""

from __future__ import annotations

import json
import pathlib

import click

from gradprune_jax._cli import files, options
from gradprune_jax._cli.checkpoints import open_checkpoint
from gradprune_jax._cli.faults import blaming
from gradprune_jax._files import replacing, safetensors_nbytes, write_safetensors
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

    OUT is a safetensors file for gradprune_jax.export.load_sparse.
    """
    files.check_free(out, force)
    opened = open_checkpoint(checkpoint, params)
    specs = {name: array.spec for name, array in opened.named.items()}
    with (
        files.tracked(opened.named, checkpoint.name, passes=2) as arrays,
        blaming(checkpoint),
    ):
        dense = safetensors_nbytes(specs, opened.metadata)
        save_sparse(
            out,
            arrays,
            max_density=max_density,
            metadata=opened.metadata,
            overwrite=force,
        )
    size = out.stat().st_size
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
    with files.tracked(opened.named, checkpoint.name) as arrays:
        specs = {name: array.spec for name, array in arrays.items()}
        contents = ((name, array.read()) for name, array in arrays.items())
        with blaming(checkpoint), replacing(out, force) as temporary:
            write_safetensors(temporary, specs, contents, opened.metadata)
    if as_json:
        click.echo(json.dumps({"file": str(out), "bytes": out.stat().st_size}))
    else:
        files.write_notice(out)
