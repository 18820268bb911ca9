"""`gradprune prune`: the selection of one mask update, on a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import gradprune_jax as gp
from gradprune_jax import _tree
from gradprune_jax._checks import enable_x64
from gradprune_jax._cli import files, options, rows
from gradprune_jax._cli.checkpoints import (
    Checkpoint,
    Path,
    blaming,
    open_checkpoint,
)
from gradprune_jax._files import safetensors as _safetensors
from gradprune_jax._files.atomic import replacing
from gradprune_jax._files.safetensors import StoredArray
from gradprune_jax._prune import select_masks
from gradprune_jax._rules import selected_leaves
from gradprune_jax.report.table import Row, draw_table


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
    passes = 1 if rule.allocation == "uniform" else 2
    counts: dict[str, int] = {}
    with (
        replacing(out, force) as temporary,
        files.tracked(opened.arrays, checkpoint.name, passes) as arrays,
    ):
        opened = dataclasses.replace(opened, arrays=arrays)
        with blaming(checkpoint):
            _safetensors.check_storable({n: a.spec for n, a in opened.named.items()})
            pruned = _prune(rule, opened)
            specs = {name: array.spec for name, array in pruned.items()}
            contents = _counted(pruned, counts)
            _safetensors.write(temporary, specs, contents, opened.metadata)
    table = [
        Row(name, array.spec.shape, array.spec.dtype, counts[name])
        for name, array in pruned.items()
    ]
    if as_json:
        summary = {"file": str(out), "left_out": opened.left_out}
        click.echo(json.dumps(summary | rows.as_dict(table)))
        return
    Console().print(draw_table(table))
    files.say_left_out(opened)
    files.write_notice(out)


def _prune(rule: gp.Rule, checkpoint: Checkpoint) -> dict[str, StoredArray]:
    """The arrays of a checkpoint by name, to be pruned when they are read.

    Under uniform allocation a leaf needs no other. Else the masks come first, from all
    leaves of the rule together, and each leaf is read once more.
    """
    leaves = _tree.named_leaves(checkpoint.shapes)
    arrays = checkpoint.arrays
    selected = [
        leaves[i].path
        for i in selected_leaves(rule, checkpoint.shapes)
        if math.prod(leaves[i].value.shape)  # nothing is to be pruned of nothing
    ]
    if rule.allocation == "uniform":
        masks: Mapping[Path, Any] = dict.fromkeys(selected)
    else:
        masks = _masks(rule, {path: arrays[path] for path in selected})
    pruned = {
        path: StoredArray(
            array.spec, functools.partial(_read_pruned, rule, array, masks[path])
        )
        if path in masks
        else array
        for path, array in arrays.items()
    }
    return dataclasses.replace(checkpoint, arrays=pruned).named


def _masks(rule: gp.Rule, arrays: Mapping[Path, StoredArray]) -> dict[Path, np.ndarray]:
    """The masks of leaves that are pruned together."""
    if not arrays:
        return {}
    with _wide_enough(arrays):
        weights = [jnp.asarray(array.read()) for array in arrays.values()]
        masks = [np.asarray(mask) for mask in select_masks(rule, weights)]
    return dict(zip(arrays, masks, strict=True))


def _read_pruned(
    rule: gp.Rule, array: StoredArray, mask: np.ndarray | None
) -> np.ndarray:
    """A leaf with zeros where its mask is False; its own mask if none is given."""
    values = array.read()
    if mask is None:
        alone: Path = ()
        read = StoredArray(array.spec, lambda: values)
        mask = _masks(rule, {alone: read})[alone]
    return np.where(mask, values, np.zeros((), values.dtype))


def _wide_enough(arrays: Mapping[Path, StoredArray]) -> AbstractContextManager[Any]:
    """64-bit types in JAX, if an array has them: its weights are ranked as they are."""
    is_wide = any(array.spec.dtype.itemsize >= 8 for array in arrays.values())
    return enable_x64() if is_wide else nullcontext()


def _counted(
    arrays: Mapping[str, StoredArray], counts: dict[str, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays as they are written, while their non-zeros are counted."""
    for name, array in arrays.items():
        values = array.read()
        counts[name] = int(np.count_nonzero(values))
        yield name, values
