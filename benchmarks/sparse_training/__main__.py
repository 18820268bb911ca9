"""`python -m benchmarks.sparse_training`: trains what is not stored, and compares."""

from __future__ import annotations

import pathlib

try:
    import click
    from rich.console import Console
    from rich.markdown import Markdown

    from benchmarks import options, stored
    from benchmarks.paper import runs, tradeoff
    from benchmarks.paper.tables import provenance
    from benchmarks.sparse_training import cost, tables
    from benchmarks.sparse_training.methods import perceptron, resnet
    from gradprune_jax.demo.data import DataError
except ImportError as error:
    raise SystemExit(f'{error}: pip install --editable ".[paper]"') from None

_STUDIES = {"perceptron": perceptron, "resnet": resnet}


@click.command()
@click.argument("name", metavar="WHAT", type=click.Choice([*_STUDIES, "cost"]))
@options.quick
@options.data_dir("IDX files")
@options.out("sparse-training-results")
@options.publish
def main(
    name: str,
    quick: bool,
    data_dir: pathlib.Path | None,
    out: pathlib.Path,
    publish: bool,
) -> None:
    """Compares pruning by every score with sparse training, or times their steps.

    WHAT is perceptron, resnet or cost.
    """
    if quick and publish:
        raise click.UsageError("--quick does not go with --publish.")
    folder = stored.FOLDER / "results" / "sparse_training" if publish else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name == "cost":
            text = cost.table(cost.measure(quick=quick))
        else:
            study = _STUDIES[name](data_dir, quick=quick)
            records = runs.run(study, folder, Console(stderr=True))
            text = tables.accuracies(study, tradeoff.rows(study, records))
            command = f"python -m benchmarks.sparse_training {name}"
            text += "\n\n" + provenance(study, records, command)
    except (DataError, OSError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from None
    stored.replace(folder / f"{name}.md", text + "\n")
    if publish:
        stored.insert(f"sparse-training-{name}", text)
    Console().print(Markdown(text))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.sparse_training")
