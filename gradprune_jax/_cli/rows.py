"""The rows of parameters that several commands print or give as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradprune_jax.report.table import Row, sparsity_of


def as_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows and their total as JSON holds them."""
    return {
        "parameters": [
            {
                "path": row.path,
                "shape": row.shape,
                "dtype": str(row.dtype),
                **_counts([row]),
            }
            for row in rows
        ],
        "total": _counts(rows),
    }


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "size": sum(row.size for row in rows),
        "nonzero": sum(row.nonzero for row in rows),
        "sparsity": sparsity_of(rows),
    }
