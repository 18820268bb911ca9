"""`gradprune prune`: the selection of one mask update, on a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import numpy as np
from rich.console import Console

import gradprune_jax as gp
from gradprune_jax._cli import files, options
from gradprune_jax._cli.checkpoints import Checkpoint, nested, open_checkpoint
from gradprune_jax._cli.faults import blaming
from gradprune_jax._cli.formats import Path, walk
from gradprune_jax._files import (
    StoredArray,
    check_storable,
    replacing,
    write_safetensors,
)
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
    safetensors file, which `gradprune pack` makes small. No training follows: start
    from it with gradprune_jax.masks_from_params, or expect a loss of accuracy.
    """
    options.rule(**fields)  # what is wrong with it needs no file to be said
    files.check_free(out, force)
    opened = open_checkpoint(checkpoint, params)
    rule = options.rule(**fields, is_torch=opened.is_torch)
    counts: dict[str, int] = {}
    with (
        replacing(out, force) as temporary,
        files.tracked(opened.arrays, checkpoint.name) as arrays,
    ):
        opened = dataclasses.replace(opened, arrays=arrays)
        with blaming(checkpoint):
            check_storable({n: a.spec for n, a in opened.named.items()})
            pruned = _prune(rule, opened)
            specs = {name: array.spec for name, array in pruned.items()}
            contents = _counted(pruned, counts)
            write_safetensors(temporary, specs, contents, opened.metadata)
    table = [
        Row(name, array.shape, array.dtype, counts[name])
        for name, array in pruned.items()
    ]
    if as_json:
        summary = {"file": str(out), "left_out": opened.left_out}
        click.echo(json.dumps(summary | rows_as_json(table)))
        return
    Console().print(draw_table(table))
    files.say_left_out(opened)
    files.write_notice(out)


def _prune(rule: gp.Rule, checkpoint: Checkpoint) -> dict[str, StoredArray]:
    """Return the arrays of a checkpoint by name, pruned where the rule selects them.

    Under uniform allocation a leaf needs no other, and is pruned when it is read. Else
    all leaves of the rule are read and pruned together.
    """
    planned = gp.plan([rule], checkpoint.shapes)
    names = {leaf.path for leaf in planned.pruned if leaf.size}  # nothing has no zeros
    selected = [path for path in checkpoint.arrays if "/".join(path) in names]
    if rule.allocation == "uniform":
        reads = {
            path: functools.partial(_read_pruned, rule, checkpoint, path)
            for path in selected
        }
    else:
        pruned = _pruned(rule, checkpoint, selected)
        reads = {path: functools.partial(pruned.__getitem__, path) for path in selected}
    arrays = {
        path: StoredArray(array.spec, reads.get(path, array.read))
        for path, array in checkpoint.arrays.items()
    }
    return dataclasses.replace(checkpoint, arrays=arrays).named


def _read_pruned(rule: gp.Rule, checkpoint: Checkpoint, path: Path) -> np.ndarray:
    """Read one array and prune it alone."""
    return _pruned(rule, checkpoint, [path])[path]


def _pruned(
    rule: gp.Rule, checkpoint: Checkpoint, paths: Sequence[Path]
) -> dict[Path, np.ndarray]:
    """Read arrays and prune them together."""
    if not paths:
        return {}
    schedule: Any = rule.schedule
    weights = {path: checkpoint.arrays[path].read() for path in paths}
    params, _ = gp.prune(
        nested(checkpoint.file, weights),
        schedule.final_sparsity,
        where=rule.where,
        structure=rule.structure,
        allocation=rule.allocation,
        stack_axis=rule.stack_axis,
        min_density=rule.min_density,
    )
    return {path: np.asarray(leaf) for path, leaf in walk(params)}


def _counted(
    arrays: Mapping[str, StoredArray], counts: dict[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield arrays as they are written, and count their non-zeros."""
    for name, array in arrays.items():
        values = array.read()
        counts[name] = int(np.count_nonzero(values))
        yield name, values
