"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.calibrated.experiment import METHODS


def perplexities(dense: float, rows: Sequence[dict[str, Any]]) -> str:
    """Test perplexities at once and after fine-tuning, one row a level."""
    heads = [*METHODS, *(f"{name}, tuned" for name in METHODS)]
    lines = [
        f"| test perplexity (dense {dense:.2f}) | {' | '.join(heads)} |",
        "|-|" + "-|" * len(heads),
    ]
    for row in rows:
        cells = [row["at once"][name] for name in METHODS]
        cells += [row["fine-tuned"][name] for name in METHODS]
        shown = " | ".join(f"{cell:.2f}" for cell in cells)
        lines.append(f"| {row['level']} | {shown} |")
    return "\n".join(lines)


def errors(level: str, rows: Sequence[dict[str, Any]]) -> str:
    """The relative errors of every layer's outputs."""
    lines = [
        f"| relative error of a layer's outputs, {level} | {' | '.join(METHODS)} |",
        "|-|" + "-|" * len(METHODS),
    ]
    for row in rows:
        shown = " | ".join(f"{row[name]:.3f}" for name in METHODS)
        lines.append(f"| `{row['layer']}` | {shown} |")
    return "\n".join(lines)


def order(rows: Sequence[dict[str, Any]]) -> str:
    """How many layers have their errors in the order of the papers."""
    first, second, third = METHODS
    ordered = sum(row[third] < row[second] < row[first] for row in rows)
    return (
        f"{third} < {second} < {first} in {ordered} of {len(rows)} layers: each method "
        "on the same inputs, those of the dense network."
    )


def agreement(rows: Sequence[dict[str, Any]]) -> str:
    """The share of masks that agrees with llm-compressor's, and both errors."""
    lines = [
        "| mask | matrices | alike | error, gradprune_jax | error, llm-compressor |",
        "|-|-|-|-|-|",
    ]
    lines += [
        f"| {row['method']}, {row['level']} | {row['matrices']} "
        f"| {100 * row['alike']:.3f} % | {row['ours']:.4f} | {row['theirs']:.4f} |"
        for row in rows
    ]
    return "\n".join(lines)
