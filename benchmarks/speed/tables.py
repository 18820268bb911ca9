"""The figures as Markdown."""

from __future__ import annotations

from typing import Any


def markdown(results: dict[str, Any]) -> str:
    """The tables of what was measured, and where and when that was."""
    updates = results.get("mask_update", [])
    tables = {
        "Mask updates of normal weights": (
            _UPDATE_COLUMNS,
            [row for row in updates if row["family"] == "normal"],
        ),
        "Mask updates of other weights": (
            _FAMILY_COLUMNS,
            [row for row in updates if row["family"] != "normal"],
        ),
        "A step without a mask update": (_STEP_COLUMNS, results.get("step")),
        "Tracing and compiling a step": (_COMPILE_COLUMNS, results.get("compile")),
    }
    parts = [
        f"**{title}**\n\n{_table(columns, rows)}"
        for title, (columns, rows) in tables.items()
        if rows
    ]
    place = f"{results['machine']}, {results['date']}, jax {results['jax']}"
    return "\n\n".join([*parts, f"Measured by `make bench` on {place}."])


def _times(row: dict[str, Any], rival: str) -> str:
    """How many times as long a rival takes, or a dash where it was not measured."""
    key = f"{rival}_ms"
    if key not in row:
        return "-"
    times = row[key] / row["gradprune_ms"]
    return f"{times:,.{0 if times >= 10 else 1}f}"


def _ratio(row: dict[str, Any], rival: str) -> str:
    """This library's time as a multiple of a rival's."""
    return f"{row['gradprune_ms'] / row[f'{rival}_ms']:.2f}"


_LEAVES = {
    "leaves": lambda row: (
        f"{row['leaves']} x {row['shape'][0]:,} x {row['shape'][1]:,}"
    ),
    "dtype": lambda row: row["dtype"],
}
_COSTS = {
    "ms": lambda row: f"{row['gradprune_ms']:.2f}",
    "ours / NumPy": lambda row: _ratio(row, "numpy"),
    "ours / one read": lambda row: f"{row['gradprune_ms'] / row['one_read_ms']:.1f}",
}
_UPDATE_COLUMNS = (
    _LEAVES
    | _COSTS
    | {
        "argsort / ours": lambda row: _times(row, "argsort"),
        "lax.top_k / ours": lambda row: _times(row, "top_k"),
        "torch / ours": lambda row: _times(row, "torch"),
        "temporary bytes a weight": lambda row: (
            f"{row['temporary_bytes_per_weight']:.2f}"
        ),
        "state bytes a weight": lambda row: f"{row['state_bytes_per_weight']:.2f}",
    }
)
_FAMILY_COLUMNS = {"weights": lambda row: row["family"]} | _LEAVES | _COSTS
_STEP_COLUMNS = {
    "step of": lambda row: row["step"],
    "parameters": lambda row: f"{row['parameters']:,}",
    "Adam, ms": lambda row: f"{row['adam_ms']:.2f}",
    "Adam with pruning, ms": lambda row: f"{row['pruned_ms']:.2f}",
    "ratio": lambda row: f"{row['ratio']:.3f}",
}

_COMPILE_COLUMNS = {
    "shapes of": lambda row: row["tree"],
    "leaves": lambda row: f"{row['leaves']:,}",
    "different shapes": lambda row: f"{row['shapes']:,}",
    "Adam, s": lambda row: f"{row['adam_s']:.2f}",
    "pruning adds: trace, s": lambda row: f"{row['added_trace_s']:.2f}",
    "compile, s": lambda row: f"{row['added_compile_s']:.2f}",
    "ms a leaf": lambda row: f"{row['added_ms_per_leaf']:.0f}",
    "fusions": lambda row: f"{row['added_fusions']:,}",
    "different kernels": lambda row: f"{row['added_kernels']:,}",
}


def _table(columns: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    lines = [list(columns), ["-"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
