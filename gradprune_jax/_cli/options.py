"""Options that several commands have, and what they become."""

from __future__ import annotations

import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import click

import gradprune_jax as gp
from gradprune_jax._tables import printable

_PATTERN = r"(\d+):(\d+)"


class Existing(click.Path):
    """A file or folder that exists; devices and pipes are refused, having no end."""

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        path = pathlib.Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.is_file() and not path.is_dir():
            self.fail(
                f"{printable(str(path))} is a device or a pipe; give a file, or a "
                "folder.",
                param,
                ctx,
            )
        return path


CHECKPOINT = Existing(exists=True)
FILE = click.Path(path_type=pathlib.Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON alone.")
force = click.option("--force", is_flag=True, help="Overwrite existing files.")
params_path = click.option(
    "--params",
    metavar="PATH",
    help="Where the parameters are in the checkpoint, keys joined by /; by default "
    "the key 'params' nearest to the root. / is all of it.",
)


def fraction(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    """Raise a usage error if a number is no fraction; `FloatRange` lets NaN pass."""
    del context
    if value is not None and (not math.isfinite(value) or not 0 <= value <= 1):
        raise click.BadParameter(
            f"{value} is not in the range 0 to 1.", param=parameter
        )
    return value


def pattern(context: click.Context, parameter: click.Parameter, value: str) -> gp.NM:
    """Read N:M from two integers with a colon; the axis is the default one."""
    del context
    match = re.fullmatch(_PATTERN, value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not like 2:4.", param=parameter)
    try:
        return gp.NM(int(match[1]), int(match[2]))
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None


def rule_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a rule for pruning at once; `rule` makes it of them."""
    options = (
        click.option(
            "--sparsity",
            type=float,
            callback=fraction,
            help="The fraction of weights to prune, 0 to 1; N:M has its own.",
        ),
        click.option(
            "--budget",
            type=click.IntRange(min=0, max=2**63),
            help="In place of --sparsity, what the model may have: non-zeros, or bytes "
            "with --layout.",
        ),
        click.option(
            "--layout",
            type=click.Choice(["bitmask", "csr", "coo"]),
            help="The layout whose bytes --budget counts; bitmask is that of pack.",
        ),
        click.option(
            "--where",
            metavar="REGEX",
            help="Which parameters, by their whole path; by default kernels and "
            "embeddings.",
        ),
        click.option(
            "--structure",
            metavar="unstructured|N:M|AxB|channel",
            default="unstructured",
            show_default=True,
            help="What is kept or dropped together: single weights, N of each M "
            "neighbours (2:4), blocks on the last axes (4x4), or channels.",
        ),
        click.option(
            "--axis",
            type=int,
            help="Of N:M groups, by default the inputs, or channels, the outputs.",
        ),
        click.option(
            "--pool",
            type=click.Choice(["mean", "max"]),
            help="How blocks and channels are ranked, by default by their mean.",
        ),
        click.option(
            "--allocation",
            type=click.Choice(["uniform", "global", "erk"]),
            default="uniform",
            show_default=True,
            help="How the sparsity is shared out among parameters.",
        ),
        click.option(
            "--score",
            type=click.Choice(["magnitude", "random"]),
            default="magnitude",
            show_default=True,
            help="What weights are ranked by; all other scores need gradients.",
        ),
        click.option("--seed", type=int, help="Of --score random, by default 0."),
        click.option(
            "--stack-axis", type=int, help="The axis along which layers are stacked."
        ),
        click.option(
            "--min-density",
            type=float,
            default=0.0,
            callback=fraction,
            help="What each parameter keeps at least, under global allocation.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def rule(
    sparsity: float | None,
    budget: int | None,
    layout: str | None,
    where: str | None,
    structure: str,
    axis: int | None,
    pool: str | None,
    allocation: Any,
    stack_axis: int | None,
    min_density: float,
    score: str,
    seed: int | None,
    is_torch: bool = False,
) -> gp.Rule:
    """Make the rule that the options of `rule_options` describe.

    By default axes are those of Flax's kernels, (..., in, out), or of PyTorch's
    weights, (out, in, ...).

    Raises:
      click.UsageError: if they contradict each other, or a value is not valid.
    """
    try:
        made = _structure(structure, axis, pool, is_torch)
        if isinstance(made, gp.NM):
            _refuse(structure, {} if budget is None else {"budget": budget})
            sparsity = 1 - made.keep / made.of if sparsity is None else sparsity
        if budget is None:
            _refuse("a sparsity", {} if layout is None else {"layout": layout})
        elif sparsity is not None:
            raise click.UsageError("--budget does not go with --sparsity.")
        else:
            sparsity = 0.5  # until the budget says another
        if sparsity is None:
            raise click.UsageError("Give --sparsity, such as --sparsity 0.9.")
        return gp.Rule(
            gp.one_shot_schedule(sparsity, 0),
            where=where,
            structure=made,
            allocation=allocation,
            stack_axis=stack_axis,
            min_density=min_density,
            score=_score(score, seed),
        )
    except ValueError as error:
        # The schedule was made here; the user gave --sparsity.
        message = str(error).replace("the schedule's final_sparsity", "--sparsity")
        raise click.UsageError(message) from None


def budget(budget: int | None, layout: str | None, **others: Any) -> gp.Budget | None:
    """Make the budget that the options of `rule_options` describe, or None."""
    del others
    if budget is None or layout is None:
        return None if budget is None else gp.Budget(budget)
    return gp.Budget(nbytes=budget, layout=layout)


def _score(name: str, seed: int | None) -> gp.Score | None:
    """Make the score that `--score` and `--seed` describe; None is magnitude."""
    if name == "random":
        return gp.Random(seed or 0)
    _refuse(f"--score {name}", {} if seed is None else {"seed": seed})
    return None


def _structure(text: str, axis: int | None, pool: Any, is_torch: bool) -> gp.Structure:
    """Make the structure that `--structure`, `--axis` and `--pool` describe."""
    fields: dict[str, Any] = {} if axis is None else {"axis": axis}
    pools: dict[str, Any] = {} if pool is None else {"pool": pool}
    if match := re.fullmatch(_PATTERN, text):
        _refuse(text, pools)
        default = {"axis": 1} if is_torch else {}
        return gp.NM(int(match[1]), int(match[2]), **(default | fields))
    if re.fullmatch(r"\d+(x\d+)*", text):
        _refuse(text, fields)
        return gp.Block(tuple(map(int, text.split("x"))), **pools)
    if text == "channel":
        default = {"axis": 0} if is_torch else {}
        return gp.Channel(**(default | fields), **pools)
    if text != "unstructured":
        raise click.UsageError(
            f"--structure is {text!r}; it must be unstructured, like 2:4, like 4x4, or "
            "channel."
        )
    _refuse(text, fields | pools)
    return gp.Unstructured()


def _refuse(text: str, fields: dict[str, Any]) -> None:
    """Raise a usage error if a structure has no such options."""
    if fields:
        raise click.UsageError(f"--{next(iter(fields))} does not go with {text!r}.")
