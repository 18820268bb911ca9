"""`gradprune demo`: train one network twice, and show what pruning did to it."""

from __future__ import annotations

import io
import json
import pathlib
import tempfile
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import gradprune_jax as gp
from gradprune_jax import report
from gradprune_jax._cli import options
from gradprune_jax._cli.files import check_free
from gradprune_jax._files import replacing
from gradprune_jax.demo import data, figure, learners, results, shrinking, training

_PICTURE = "demo.png"
_NUMBERS = "demo.json"
_WIDTHS = "widths.png"
# Without half of its channels the network has a quarter of its weights.
_SPARSITY = {"unstructured": 0.9, "channels": 0.5}


@click.command()
@click.option(
    "--model",
    "api",
    type=click.Choice(["linen", "nnx"]),
    default="linen",
    show_default=True,
    help="The Flax API of the network.",
)
@click.option(
    "--structure",
    type=click.Choice(list(_SPARSITY)),
    default="unstructured",
    show_default=True,
    help="What is pruned: single weights, or channels of the whole network, which are "
    "then cut out of it.",
)
@click.option(
    "--sparsity",
    type=float,
    callback=options.fraction,
    help="The fraction of weights or channels to prune, 0 to 1. By default 0.9 of the "
    "weights, or 0.5 of the channels.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="How often each training sees every image.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="The seed of the initialisation and of the order of images.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default="gradprune-demo",
    show_default=True,
    help="The folder for the picture and the numbers.",
)
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="A folder of IDX files (train-images-idx3-ubyte, ... plain or .gz) to use "
    "in place of the bundled 10,000 images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object alone.")
@click.option("--force", is_flag=True, help="Overwrite files of an earlier run.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    hidden=True,
    help="Train on this many images only, to try the command out.",
)
def demo(
    api: learners.Api,
    structure: str,
    sparsity: float | None,
    epochs: int,
    seed: int,
    out: pathlib.Path,
    data_dir: pathlib.Path | None,
    as_json: bool,
    force: bool,
    limit: int | None,
) -> None:
    """Train a small CNN on Fashion-MNIST twice, dense and pruned, and compare.

    Both trainings have the same initialisation, batches and number of steps. Writes
    demo.png and demo.json. With --structure channels, the dead channels are cut out of
    the pruned network, both networks are timed, and widths.png shows what is left.
    """
    is_cut = structure == "channels"
    files = [out / _PICTURE, out / _NUMBERS] + [out / _WIDTHS] * is_cut
    for file in files:
        check_free(file, force)
    dataset = data.load(data_dir)
    if limit is not None:
        dataset = dataset.limit(limit)
    out.mkdir(parents=True, exist_ok=True)
    _check_writable(out)

    source = "Fashion-MNIST" if data_dir is None else data_dir.resolve().name
    shared = training.Training(dataset, source, epochs, seed)
    schedule = shared.schedule(_SPARSITY[structure] if sparsity is None else sparsity)
    rule, fn = gp.Rule(schedule), None
    if is_cut:
        learner = learners.create(api, shared.optimizer(), shared.seed)
        fn = learner.fn
        coupled = shrinking.coupled_channels(fn, learner.params)
        rule = gp.Rule(schedule, structure=coupled)
    dense, pruned = _train_both(api, shared, rule, Console(stderr=True))
    try:
        measured = results.summarise(shared, rule, dense, pruned)
    except ValueError as error:
        raise data.DataError(f"the pruned network is not sound: {error}") from None
    summary = {"model": api, "structure": structure, **measured}
    summary["files"] = [str(file) for file in files]
    pictures = [figure.draw(dense, pruned, summary)]
    if fn is not None:
        shrunk = shrinking.shrink(fn, pruned.params)
        summary["shrunk"] = shrinking.compare(shared, fn, pruned, shrunk)
        pictures.append(report.plot_groups(shrunk))
    numbers = {**summary, "curves": results.curves(dense, pruned)}
    contents = [*map(_as_png, pictures)]
    contents.insert(1, (json.dumps(numbers, indent=1) + "\n").encode())
    for file, content in zip(files, contents, strict=True):
        with replacing(file, force) as temporary:
            temporary.write_bytes(content)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _print_outcome(Console(), pruned, summary)


def _as_png(picture: Any) -> bytes:
    """Draw a figure into a PNG file's content."""
    content = io.BytesIO()
    picture.savefig(content, format="png")
    return content.getvalue()


def _train_both(
    api: learners.Api,
    shared: training.Training,
    rule: gp.Rule,
    console: Console,
) -> tuple[training.Run, training.Run]:
    """Train the dense and the pruned network under one progress display."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, expand=True) as bars:
        runs = []
        for name, tx in (
            ("dense", shared.optimizer()),
            ("pruned", shared.pruning_optimizer(rule)),
        ):
            learner = learners.create(api, tx, shared.seed)
            # The window was computed here; this proves that it ends in time.
            gp.plan(rule, learner.params, total_steps=shared.steps)
            bar = bars.add_task(name, total=shared.steps, status="compiling")

            def show(now: training.Progress, bar: Any = bar) -> None:
                bars.update(bar, completed=now.step, status=_status(now))

            prunes = name == "pruned"
            runs.append(training.train(shared, learner, prunes=prunes, report=show))
    return runs[0], runs[1]


def _status(now: training.Progress) -> str:
    """Format where a training stands for its progress bar, within 80 columns."""
    sparsity = 0.0 if now.sparsity is None else now.sparsity
    return (
        f"loss [cyan]{now.loss:.3f}[/] accuracy [green]{100 * now.accuracy:.1f} %[/] "
        f"sparsity [yellow]{100 * sparsity:.1f} %[/]"
    )


def _print_outcome(
    console: Console, pruned: training.Run, summary: dict[str, Any]
) -> None:
    """Print what was measured, and which files hold it."""
    console.print(
        report.tabulate(pruned.params, pruned.opt_state, title="The pruned network")
    )
    table = Table(title="Same start, same batches, same steps")
    table.add_column("")
    for heading in ("accuracy", "correct", "prunable, non-zero", "all, non-zero"):
        table.add_column(heading, justify="right", no_wrap=True)
    tests = summary["training"]["test_images"]
    for name in ("dense", "pruned"):
        run = summary[name]
        table.add_row(
            name,
            f"{100 * run['accuracy']:.2f} %",
            f"{run['correct']:,}/{tests:,}",
            f"{run['prunable_nonzero']:,}/{run['prunable']:,}",
            f"{run['parameters_nonzero']:,}/{run['parameters']:,}",
        )
    console.print(table)
    if "shrunk" in summary:
        _print_shrunk(console, summary["shrunk"], tests)
    for line in (
        f"Pruned weights: {summary['pruned_weights']:,}. "
        f"Not exactly +0.0 among them: {summary['pruned_weights_not_zero']:,}.",
        *(f"Wrote {file}" for file in summary["files"]),
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_shrunk(console: Console, shrunk: dict[str, Any], tests: int) -> None:
    """Print what the cut made of the pruned network."""
    table = Table(title="The pruned network, its dead channels cut out")
    table.add_column("")
    sizes = shrunk["milliseconds"]
    for heading in ("parameters", "correct", *(f"ms, batch {size}" for size in sizes)):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in ("before", "after"):
        table.add_row(
            name,
            f"{shrunk['parameters'][name]:,}",
            f"{shrunk['correct'][name]:,}/{tests:,}",
            *(f"{times[name]:.3f}" for times in sizes.values()),
        )
    console.print(table)


def _check_writable(folder: pathlib.Path) -> None:
    """Raise an error, before minutes of training, if a folder cannot be written to."""
    with tempfile.TemporaryFile(dir=folder):
        pass
