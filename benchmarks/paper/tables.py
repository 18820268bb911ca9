"""A study as Markdown: its table, its picture, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.paper import tradeoff
from benchmarks.paper.study import Metric, Study
from benchmarks.paper.task import SMALL_DENSE
from benchmarks.paper.tradeoff import Row


def markdown(
    study: Study, records: Sequence[dict[str, Any]], command: str, picture: str
) -> str:
    """All that a study shows.

    Args:
      study: what was trained.
      records: one for each configuration and seed.
      command: that writes the table.
      picture: the path of the figure, relative to where the text is read; none if "".

    Returns:
      A table, a picture, sentences, and where the figures come from.
    """
    rows = tradeoff.rows(study, records)
    parts = [_table(study, rows)]
    if picture:
        parts.append(f"![{study.metric.title} against non-zeros]({picture})")
    said = [*study.notes, *_sentences(study, rows)]
    parts.append("\n".join(f"- {sentence}" for sentence in said))
    parts.append(provenance(study, records, command))
    return "\n\n".join(part for part in parts if part)


def _sentences(study: Study, rows: Sequence[Row]) -> list[str]:
    """What is computed from the rows: for ablations, one sentence each."""
    if not rows[0].is_sparse:
        return [*_beside_baseline(study, rows), *tradeoff.statements(study, rows)]
    first, *others = rows
    return [_ablation(study, first, row) for row in others]


def _beside_baseline(study: Study, rows: Sequence[Row]) -> list[str]:
    """The dense network that the pruned ones start from, beside another model."""
    if study.baseline is None:
        return []
    reference, *_ = rows
    metric, other = study.metric, study.baseline.value
    value = reference.mean(metric.name)
    beats = metric.gain(value, other) > 0
    return [
        f"The dense network ({reference.name}) {'beats' if beats else 'does not beat'} "
        f"{study.baseline.name}: {metric.title} {metric.show(value)} against "
        f"{metric.show(other)}{'' if beats else f': {study.baseline.reason}'}."
    ]


def _ablation(study: Study, first: Row, row: Row) -> str:
    """One choice beside the paper's, and what that makes of the paper's remark."""
    metric = study.metric
    value, reference = row.mean(metric.name), first.mean(metric.name)
    gain = metric.gain(value, reference)
    spread = max(row.spread(metric.name), first.spread(metric.name))
    differs = abs(gain) > spread
    said = f"{row.name[0].upper()}{row.name[1:]}: {value - reference:+.2f}"
    if study.seeds == 1:
        return f"{said}, of one seed: not enough to tell."
    said = (
        f"{said}, {'beyond' if differs else 'within'} the spread of seeds "
        f"({spread:.2f})."
    )
    remark = study.remarks[row.name]
    if remark.expects is None:
        return f"{said} {remark.text}."
    if differs == (remark.expects == "worse") and (gain < 0 or not differs):
        verdict = "that holds here"
    else:
        verdict = "here the opposite shows" if differs else "that does not show here"
    return f"{said} {remark.text}: {verdict}."


def _table(study: Study, rows: Sequence[Row]) -> str:
    """One line for each configuration."""
    metric, reference = study.metric, rows[0]
    compared = not reference.is_sparse and any(row.is_sparse for row in rows)
    headings = [
        "model",
        "non-zeros",
        *("dense, kB", "bit mask, kB", "CSR, kB"),
        metric.label,
        f"to {reference.name}",
        *(["spread"] if study.seeds > 1 else []),
        *([f"{SMALL_DENSE} of as many", "gain"] if compared else []),
        *(other.label for other in study.others),
    ]
    lines = [headings, ["-"] * len(headings)]
    lines += [
        [
            row.name,
            f"{row.nonzero:,}",
            *(f"{size / 1e3:,.0f}" for size in row.bytes.values()),
            f"{row.mean(metric.name):.2f}",
            f"{row.mean(metric.name) - reference.mean(metric.name):+.2f}",
            *([f"{row.spread(metric.name):.2f}"] if study.seeds > 1 else []),
            *(_comparison(metric, rows, row) if compared else []),
            *(f"{row.mean(other.name):.2f}" for other in study.others),
        ]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _comparison(metric: Metric, rows: Sequence[Row], row: Row) -> list[str]:
    """Two cells: small-dense at as many non-zeros, and the gain over it."""
    dense = tradeoff.curves(rows)[SMALL_DENSE]
    if not row.is_sparse or len(dense) < 2:
        return ["", ""]
    found = tradeoff.compare(metric, row, dense)
    gain = f"{found.gain:+.2f}"
    return [f"{found.dense:.2f}", f"({gain})" if found.verdict == "equals" else gain]


def provenance(study: Study, records: Sequence[dict[str, Any]], command: str) -> str:
    """The data, the command, the commit and the machine.

    Args:
      study: what was trained.
      records: one for each configuration and seed.
      command: that writes the table.

    Returns:
      A sentence.
    """

    def distinct(field: str) -> str:
        return ", ".join(sorted({str(each[field]) for each in records}))

    seeds = "one seed, so that small differences may be chance"
    if study.seeds > 1:
        seeds = f"means of {study.seeds} seeds with the spread between them"
    return (
        f"{study.source}; {records[0]['steps']:,} steps, {seeds}; trained at commit "
        f"{distinct('commit')} on {distinct('machine')}, {distinct('date')}, jax "
        f"{distinct('jax')}. Written by `{command}`."
    )
