"""`python -m benchmarks.paper STUDY`: trains what is not stored yet, and compares."""

from __future__ import annotations

import pathlib
import tempfile

try:
    import click
    from rich.console import Console
    from rich.markdown import Markdown

    from benchmarks import options, stored
    from benchmarks.paper import figure, runs, tables, tradeoff
    from benchmarks.paper.studies import STUDIES
    from benchmarks.paper.task import ScaleName
    from gradprune_jax.demo.data import DataError
except ImportError as error:
    raise SystemExit(f'{error}: pip install --editable ".[paper]"') from None

_PUBLISHED = pathlib.Path(__file__).parent / "results"


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
    help="The sizes: for two cores (the default), or the paper's, for an accelerator.",
)
@click.option(
    "--together",
    is_flag=True,
    help="All sparsities of a seed in one program, without checkpoints: for an "
    "accelerator, which a small network leaves idle.",
)
@options.quick
@options.data_dir(
    "IDX files, sotu.tsv.gz or ptb.*.txt, cmudict.dict.gz, web_rv1909.tsv.gz"
)
@options.out("paper-results")
@options.publish
def main(
    name: str,
    task: str | None,
    scale: ScaleName | None,
    together: bool,
    quick: bool,
    data_dir: pathlib.Path | None,
    out: pathlib.Path,
    publish: bool,
) -> None:
    """Reproduces a study of the paper; run it again to go on after an interruption.

    STUDY is mlp, cnn, mobilenet, lstm, seq2seq or ablations.
    """
    if task is not None and name != "seq2seq":
        raise click.UsageError(f"--task is {task!r} with {name}; seq2seq alone has it.")
    if quick and (scale or publish):
        raise click.UsageError("--quick goes with neither --scale nor --publish.")
    chosen: ScaleName = "quick" if quick else scale or "laptop"
    folder = (_PUBLISHED if publish else out) / chosen
    study_name = "translation" if task == "translation" else name
    try:
        study = STUDIES[study_name](chosen, data_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # before hours of training
        console = Console(stderr=True)
        records = runs.run(study, folder, console, side_by_side=together)
    except (DataError, OSError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from None

    rows = tradeoff.rows(study, records)
    picture = ""
    if any(row.is_sparse != rows[0].is_sparse for row in rows):
        picture = f"{study.name}.png"
        figure.draw(study, rows).savefig(folder / picture, dpi=150)
    given = (f" --task {task}" if task else "") + (" --quick" if quick else "")
    given += (f" --scale {scale}" if scale else "") + (" --publish" * publish)
    given += " --data-dir ..." if data_dir else ""
    command = f"python -m benchmarks.paper {name}{given}"
    text = tables.markdown(study, records, command, picture)
    stored.replace(folder / f"{study.name}.md", text + "\n")
    if publish:
        place = f"paper/results/{chosen}/{picture}" if picture else ""
        table = tables.markdown(study, records, command, place)
        stored.insert(f"{study.name}-{chosen}", table)
    Console().print(Markdown(text))
    click.echo(f"Wrote {folder / study.name}.md", err=True)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.paper")
