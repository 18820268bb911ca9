"""``python -m benchmarks.paper STUDY``: trains what is not stored yet, and compares."""

from __future__ import annotations

import pathlib

import click
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import stored
from benchmarks.paper import figure, runs, tables, tradeoff
from benchmarks.paper.studies import STUDIES
from benchmarks.paper.task import ScaleName
from gradprune_jax.demo.data import DataError

_RESULTS = pathlib.Path(__file__).parent / "results"


@click.command()
@click.argument(
    "name",
    metavar="STUDY",
    type=click.Choice([name for name in STUDIES if name != "translation"]),
)
@click.option(
    "--task",
    type=click.Choice(["pronunciation", "translation"]),
    help="What seq2seq learns: spelling to phones, unless it is told to translate.",
)
@click.option(
    "--scale",
    type=click.Choice(["laptop", "paper"]),
    default="laptop",
    show_default=True,
    help="The sizes: for two cores, or the paper's, for an accelerator.",
)
@click.option("--quick", is_flag=True, help="Tiny sizes, to try it out in a minute.")
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="The folder of the data, in place of what is bundled: IDX files, sotu.tsv.gz "
    "or ptb.*.txt, cmudict.dict.gz, web_rv1909.tsv.gz.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="The folder for records, checkpoints, table and picture. Unless it is given, "
    "the table goes into benchmarks/README.md too.",
)
def main(
    name: str,
    task: str | None,
    scale: ScaleName,
    quick: bool,
    data_dir: pathlib.Path | None,
    out: pathlib.Path | None,
) -> None:
    """Reproduces a study of the paper; run it again to go on after an interruption.

    STUDY is cnn, mobilenet, lstm, seq2seq or ablations.
    """
    if task is not None and name != "seq2seq":
        raise click.UsageError(f"--task is {task!r} with {name}; seq2seq alone has it.")
    command = f"python -m benchmarks.paper {name}" + (f" --task {task}" if task else "")
    if task == "translation":
        name = "translation"
    console = Console(stderr=True)
    if quick:
        scale = "quick"
    folder = out or _RESULTS / scale
    try:
        study = STUDIES[name](scale, data_dir)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    records = runs.run(study, folder, console)

    rows = tradeoff.rows(study, records)
    picture = ""
    if any(row.is_sparse != rows[0].is_sparse for row in rows):
        picture = f"{name}.png"
        figure.draw(study, rows).savefig(folder / picture, dpi=150)
    command += _options(scale, data_dir)
    text = tables.markdown(study, records, command, picture)
    (folder / f"{name}.md").write_text(text + "\n")
    if out is None and f"{name}-{scale}" in stored.marks():
        place = f"paper/results/{scale}/{picture}" if picture else ""
        stored.insert(
            f"{name}-{scale}", tables.markdown(study, records, command, place)
        )
    Console().print(Markdown(text))
    console.print(f"Wrote {folder / name}.md", highlight=False, soft_wrap=True)


def _options(scale: ScaleName, data_dir: pathlib.Path | None) -> str:
    """The options as they were given, without the path of a folder."""
    scales = {"laptop": "", "quick": " --quick", "paper": " --scale paper"}
    return scales[scale] + (" --data-dir ..." if data_dir else "")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.paper")
