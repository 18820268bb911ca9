"""`gradprune plan`: what rules would do to a model."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import click
import jax
import jax.numpy as jnp

import gradprune_jax as gp
from gradprune_jax._cli import options
from gradprune_jax._cli.checkpoints import nested, open_checkpoint
from gradprune_jax._cli.faults import CheckpointError, blaming
from gradprune_jax._cli.formats import Path, walk
from gradprune_jax._files import checked_shape
from gradprune_jax._tables import printable


@click.command()
@click.argument("model", type=options.CHECKPOINT)
@click.option(
    "--rules",
    type=options.Existing(exists=True, dir_okay=False),
    help="A file of gradprune_jax.rules_to_json, in place of the options of one rule.",
)
@click.option(
    "--total-steps",
    type=click.IntRange(min=1),
    help="The optimizer updates of the training, to check that pruning ends in time.",
)
@options.rule_options
@options.params_path
@options.as_json
def plan(
    model: pathlib.Path,
    rules: pathlib.Path | None,
    total_steps: int | None,
    params: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Show which parameters of MODEL rules would prune, how far, and when.

    MODEL is a checkpoint (an orbax folder, safetensors in one file or several, npz or
    Flax msgpack), or a JSON file of shapes:
    {"Dense_0": {"kernel": [784, 10], "bias": [10]}}.
    """
    if rules is None:
        chosen = [options.rule(**fields)]
    else:
        _refuse_fields(fields)
        with blaming(rules):
            chosen = gp.rules_from_json(rules.read_bytes())
    shapes = open_shapes(model, params)
    with blaming(model):
        planned = gp.plan(
            chosen, shapes, total_steps=total_steps, budget=options.budget(**fields)
        )
    click.echo(json.dumps(_as_dict(planned)) if as_json else _as_text(planned))


def _refuse_fields(fields: dict[str, Any]) -> None:
    """Raise a usage error if options of one rule stand beside a file of rules."""
    context = click.get_current_context()
    for name in fields:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} does not go with --rules.")


def _as_text(planned: gp.Plan) -> str:
    """Format the plan as a table, with control characters in names escaped."""
    leaves = (
        dataclasses.replace(leaf, path=printable(leaf.path)) for leaf in planned.leaves
    )
    return str(dataclasses.replace(planned, leaves=tuple(leaves)))


def _as_dict(planned: gp.Plan) -> dict[str, Any]:
    """Return the plan as a dictionary, ready for JSON."""
    return {
        "parameters": [
            {
                "path": leaf.path,
                "shape": leaf.shape,
                "dtype": str(leaf.dtype),
                "size": leaf.size,
                "rule": leaf.rule,
                "structure": None if leaf.structure is None else str(leaf.structure),
                "final_sparsity": leaf.final_sparsity,
                "units": leaf.units,
                "kept_units": leaf.kept_units,
                "kept": leaf.kept,
            }
            for leaf in planned.leaves
        ],
        "rules": json.loads(gp.rules_to_json(planned.rules))["rules"],
        "kept": planned.kept,
        "kept_units": planned.kept_units,
        "update_steps": planned.update_steps,
        "mask_bytes": planned.mask_bytes,
    }


def open_shapes(file: pathlib.Path, params: str | None = None) -> dict[str, Any]:
    """Read the shapes that a JSON file lists, or that the arrays of a checkpoint have.

    In JSON a shape is a list of integers, of a float32 array, or an object with `shape`
    and `dtype`, at a path of keys or under one name of keys joined by `/`.

    Returns:
      The shapes in nested dicts.
    """
    name = file.name.lower()
    if not name.endswith(".json") or name.endswith(".index.json") or file.is_dir():
        return open_checkpoint(file, params).shapes
    if params is not None:
        raise click.UsageError("--params goes with a checkpoint, not with JSON.")
    try:
        document = json.loads(file.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("but a JSON " + type(document).__name__)
        found = dict(walk(document, is_leaf=_is_shape))
        shapes = {
            tuple("/".join(path).split("/")): _shape(path, leaf)
            for path, leaf in found.items()
        }
    except RecursionError:
        raise CheckpointError(f"{file}: is nested too deeply.") from None
    except (ValueError, TypeError, SyntaxError) as error:
        raise CheckpointError(
            f'{file}: is no list of shapes, {error}; it must be like {{"Dense_0": '
            '{"kernel": [784, 10], "bias": {"shape": [10], "dtype": "bfloat16"}}}.'
        ) from None
    return nested(file, shapes)


def _is_shape(node: Any) -> bool:
    """Whether a node of the JSON is a shape, or a shape and a dtype."""
    if isinstance(node, list):
        return True
    return set(node) == {"shape", "dtype"} and isinstance(node["shape"], list)


def _shape(path: Path, written: Any) -> jax.ShapeDtypeStruct:
    """Make a shape of what JSON holds."""
    shape, dtype = written, "float32"
    if isinstance(written, dict):
        shape, dtype = written["shape"], written["dtype"]
    name = "/".join(path)
    if not isinstance(shape, list):
        raise ValueError(f"the shape of {name!r} is {shape!r}")
    if not isinstance(dtype, str):
        raise ValueError(f"the dtype of {name!r} is {dtype!r}")
    return jax.ShapeDtypeStruct(checked_shape(name, shape), jnp.dtype(dtype))
