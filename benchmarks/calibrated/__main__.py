"""`python -m benchmarks.calibrated`: trains once, prunes in every way, and compares."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

try:
    import click
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import Progress

    from benchmarks import options, stored
    from benchmarks.calibrated import experiment, peer, tables
    from gradprune_jax.demo.data import DataError
except ImportError as error:
    raise SystemExit(f'{error}: pip install --editable ".[paper]"') from None


@click.command()
@options.quick
@options.data_dir("sotu.tsv.gz or ptb.*.txt")
@options.out("calibrated-results")
@options.publish
@click.option(
    "--peer",
    "python",
    help="The Python of an environment with llmcompressor: compare its masks too.",
)
def main(
    quick: bool,
    data_dir: pathlib.Path | None,
    out: pathlib.Path,
    publish: bool,
    python: str | None,
) -> None:
    """Compares one-shot pruning by magnitude, Wanda and SparseGPT.

    What was trained or measured is not computed again; run it again to go on.
    """
    if quick and publish:
        raise click.UsageError("--quick does not go with --publish.")
    folder = stored.FOLDER / "results" / "calibrated" if publish else out
    try:
        own = experiment.task(data_dir, quick=quick)
        levels = experiment.LEVELS[:: 3 if quick else 1]
        results = _measure(own, levels, folder, python)
    except (DataError, OSError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from None
    text = _text(own, results)
    stored.replace(folder / "calibrated.md", text + "\n")
    if publish:
        stored.insert("calibrated", text)
    Console().print(Markdown(text))


def _measure(
    own: Any,
    levels: Sequence[experiment.Level],
    folder: pathlib.Path,
    python: str | None,
) -> dict[str, Any]:
    """All figures, stored after each."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "calibrated.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def store(key: str, value: Any) -> None:
        results.update({key: value} | stored.machine())
        stored.replace(file, json.dumps(results, indent=1) + "\n")

    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("training", total=own.steps)

        def report(step: int, loss: float) -> None:
            bars.update(bar, completed=step, description=f"training, loss {loss:.2f}")

        params = experiment.trained(own, folder / "checkpoints", report)
        if "dense" not in results:
            store("dense", own.evaluate(params))
        if "errors" not in results:
            store("errors", experiment.layer_errors(own, params, experiment.LEVELS[0]))
        rows = results.setdefault("rows", [])
        bar = bars.add_task("pruning", total=len(levels))
        for level in levels[len(rows) :]:
            bars.update(bar, completed=len(rows))
            at_once, tuned = {}, {}
            for name, method in experiment.METHODS.items():
                pruned, masks = experiment.pruned(own, params, level, method)
                at_once[name] = own.evaluate(pruned)["test_perplexity"]
                after = experiment.fine_tuned(own, pruned, masks)
                tuned[name] = own.evaluate(after)["test_perplexity"]
            row = {"level": level.name, "at once": at_once, "fine-tuned": tuned}
            rows.append(row)
            store("rows", rows)
        bars.update(bar, completed=len(rows))
    if python is not None:
        store("peer", peer.measure(own, params, python))
    return results


def _text(own: Any, results: dict[str, Any]) -> str:
    """All tables, and where the figures come from."""
    corpus, network = own.corpus, own.network
    parts = [
        tables.perplexities(results["dense"]["test_perplexity"], results["rows"]),
        tables.errors(experiment.LEVELS[0].name, results["errors"])
        + f"\n\n{tables.order(results['errors'])}",
    ]
    if "peer" in results:
        parts.append(tables.agreement(results["peer"]))
    parts.append(
        f"{corpus.name}, {len(corpus.train):,} words for training; {network.layers} "
        f"blocks of {network.width}, {own.steps:,} steps of {own.examples:,} words; "
        f"{experiment.SEQUENCES} sequences of {network.length} words for calibration. "
        f"By `python -m benchmarks.calibrated` on {results['machine']}, "
        f"{results['date']}, jax {results['jax']}."
    )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.calibrated")
