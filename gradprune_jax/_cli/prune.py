"""`gradprune prune`: the selection of one mask update, on a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import gradprune_jax as gp
from gradprune_jax._cli import files, options
from gradprune_jax._cli.checkpoints import Checkpoint, open_checkpoint
from gradprune_jax._cli.faults import blaming
from gradprune_jax._cli.formats import Path, walk
from gradprune_jax._cli.output import write_checkpoint, write_notice
from gradprune_jax._files import StoredArray, check_storable, write_safetensors
from gradprune_jax._prune import masks_of_rule
from gradprune_jax._tables import Row, draw_table
from gradprune_jax._tables import as_json as rows_as_json


@click.command()
@click.argument("checkpoint", type=options.CHECKPOINT)
@click.argument("out", type=options.FILE)
@options.rule_options
@options.params_path
@options.as_json
@options.force
def prune(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    params: str | None,
    as_json: bool,
    force: bool,
    **fields: Any,
) -> None:
    """Prune the parameters of CHECKPOINT at once, and write them to OUT.

    CHECKPOINT is an orbax folder, safetensors, npz or Flax msgpack; OUT is a dense
    safetensors file, which `gradprune pack` makes small. Of a folder of safetensors
    with its index (Hugging Face's), OUT is such a folder. No training follows: start
    from it with gradprune_jax.masks_from_params, or expect a loss of accuracy.
    """
    options.rule(**fields)  # what is wrong with it needs no file to be said
    files.check_free(out, force)
    opened = open_checkpoint(checkpoint, params)
    rule = options.rule(**fields, is_torch=opened.is_torch)
    budget = options.budget(**fields)
    if budget is not None:
        with blaming(checkpoint):
            (rule,) = gp.plan([rule], opened.shapes, budget=budget).rules
    passes = 1 if rule.allocation == "uniform" else 2
    counts: dict[str, int] = {}

    def write_file(
        file: pathlib.Path,
        arrays: Mapping[str, StoredArray],
        metadata: Mapping[str, str],
    ) -> None:
        specs = {name: array.spec for name, array in arrays.items()}
        write_safetensors(file, specs, _counted(arrays, counts), metadata)

    with (
        files.tracked(opened.arrays, checkpoint.name, passes) as arrays,
        blaming(checkpoint),
    ):
        opened = dataclasses.replace(opened, arrays=arrays)
        check_storable({n: a.spec for n, a in opened.named.items()})
        write_checkpoint(
            opened, out, force, write_file, functools.partial(_prune, rule)
        )
    table = [
        Row(name, array.shape, array.dtype, counts[name])
        for name, array in opened.named.items()
    ]
    if as_json:
        summary = {"file": str(out), "left_out": opened.left_out}
        click.echo(json.dumps(summary | rows_as_json(table)))
        return
    Console().print(draw_table(table))
    files.say_left_out(opened)
    write_notice(out)


def _prune(rule: gp.Rule, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint, pruned where the rule selects, none of it read yet.

    Under uniform allocation the mask of a leaf needs no other leaf, and is made when
    the leaf is read. Else the masks are made when the first leaf is, from all leaves
    of the rule together, and each leaf is read once more.
    """
    planned = gp.plan([rule], checkpoint.shapes)
    names = {leaf.path for leaf in planned.pruned if leaf.size}  # nothing has no zeros
    arrays = checkpoint.arrays
    selected = [path for path in arrays if "/".join(path) in names]
    together = functools.cache(
        functools.partial(_masks_together, rule, checkpoint, selected)
    )
    masks = None if rule.allocation == "uniform" else together
    pruned = {
        path: dataclasses.replace(
            arrays[path],
            read=functools.partial(_read_pruned, rule, checkpoint, path, masks),
        )
        for path in selected
    }
    return dataclasses.replace(checkpoint, arrays=arrays | pruned)


def _masks_together(
    rule: gp.Rule, checkpoint: Checkpoint, paths: Sequence[Path]
) -> dict[Path, np.ndarray]:
    """Return the masks of leaves that are pruned together."""
    arrays = [checkpoint.arrays[path] for path in paths]

    is_wide = any(array.dtype.itemsize >= 8 for array in arrays)  # JAX would narrow it
    weights = [x.read() if is_wide else jnp.asarray(x.read()) for x in arrays]
    masks = _masks(rule, checkpoint, dict(zip(paths, weights, strict=True)))
    return {path: np.asarray(mask) for path, mask in masks.items()}


def _masks(
    rule: gp.Rule, checkpoint: Checkpoint, weights: Mapping[Path, Any]
) -> dict[Path, Any]:
    """Return the masks of leaves, in the order of the weights."""
    masks = masks_of_rule(rule, checkpoint.tree(weights))
    found = {"/".join(path): mask for path, mask in walk(masks)}
    return {path: found["/".join(path)] for path in weights}


def _read_pruned(
    rule: gp.Rule,
    checkpoint: Checkpoint,
    path: Path,
    masks: Callable[[], Mapping[Path, np.ndarray]] | None,
) -> np.ndarray:
    """Read an array, with zeros where its mask is False; None makes its own mask."""
    together = {} if masks is None else masks()
    values = checkpoint.arrays[path].read()
    mask = together.get(path)
    if mask is None:
        mask = np.asarray(_masks(rule, checkpoint, {path: values})[path])
    return np.where(mask, values, np.zeros((), values.dtype))


def _counted(
    arrays: Mapping[str, StoredArray], counts: dict[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield arrays as they are written, and count their non-zeros."""
    for name, array in arrays.items():
        values = array.read()
        counts[name] = int(np.count_nonzero(values))
        yield name, values
