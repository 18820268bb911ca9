"""`gradprune plan`: what rules would do to a model."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import click

import gradprune_jax as gp
from gradprune_jax._cli import options
from gradprune_jax._cli.checkpoints import blaming
from gradprune_jax._cli.shapes import open_shapes
from gradprune_jax.report.table import printable


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

    MODEL is a checkpoint (an orbax folder, safetensors, npz or Flax msgpack), or a JSON
    file of shapes: {"Dense_0": {"kernel": [784, 10], "bias": [10]}}.
    """
    if rules is None:
        chosen = [options.rule(**fields)]
    else:
        _refuse_fields(fields)
        with blaming(rules):
            chosen = gp.rules_from_json(rules.read_bytes())
    shapes = open_shapes(model, params)
    with blaming(model):
        planned = gp.plan(chosen, shapes, total_steps=total_steps)
    click.echo(json.dumps(_as_dict(planned)) if as_json else _as_text(planned))


def _refuse_fields(fields: dict[str, Any]) -> None:
    """Refuses the options of one rule beside a file of rules."""
    context = click.get_current_context()
    for name in fields:
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} does not go with --rules.")


def _as_text(planned: gp.Plan) -> str:
    """The plan as a table, with names that do no harm to a terminal."""
    leaves = (
        dataclasses.replace(leaf, path=printable(leaf.path)) for leaf in planned.leaves
    )
    return str(dataclasses.replace(planned, leaves=tuple(leaves)))


def _as_dict(planned: gp.Plan) -> dict[str, Any]:
    """The plan as JSON holds it."""
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
