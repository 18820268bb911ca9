"""Tables and the words in them: everything that this library prints.

A table of text (`text_table`) is what `print` shows of a plan or a report. A table of
parameters (`Row`, `draw_table`) is drawn by rich, for `report.tabulate` and for the
command line, which also gives its rows as JSON (`as_json`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from rich.table import Column, Table

_Item = TypeVar("_Item")


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | None = None
) -> str:
    """Format rows as lines of text, with a rule below the header.

    Args:
      header: the names of the columns.
      rows: the cells of each row, as many as the header has.
      left: how many columns, from the first, are aligned to the left; those after them
        are aligned to the right. None aligns all to the left.

    Returns:
      The lines as one string, without blanks at their ends.

    Examples:
      >>> print(text_table(("path", "kept"), [("a/kernel", "12"), ("b", "7")], left=1))
      path      kept
      --------  ----
      a/kernel    12
      b            7
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    left = len(header) if left is None else left

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = ["-" * width for width in widths]
    return "\n".join(map(line, (header, rule, *rows)))


def by(shape: Sequence[int]) -> str:
    """Format a shape.

    Examples:
      >>> by((3, 4)), by(())
      ('3x4', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def printable(name: str) -> str:
    r"""Escape what is no letter, sign or space, so that a name can be printed.

    A terminal obeys control characters, whoever wrote them into a file.

    Examples:
      >>> print(printable("\x1b[2Jkernel"))
      \x1b[2Jkernel
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in name
    )


def share(part: int, whole: int) -> str:
    """Format a share in per cent; only nothing is 0 %, and only all is 100 %.

    Examples:
      >>> share(2, 3), share(1, 10_000), share(9_999, 10_000)
      ('66.7 %', 'less than 0.1 %', 'more than 99.9 %')
    """
    percent = 100 * part / max(whole, 1)
    if 0 < percent < 0.1:
        return "less than 0.1 %"
    if 99.9 < percent < 100:
        return "more than 99.9 %"
    return f"{round(percent, 1):g} %"


def some_of(names: Sequence[str]) -> str:
    """List the first names of several in quotes, and say how many more there are.

    Examples:
      >>> some_of(["a/w", "b/w", "c/w", "d/w"])
      "'a/w', 'b/w', 'c/w' and 1 more"
    """
    return first_of([*map(repr, names)])


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """List the first of several texts, and say how many more there are."""
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


class Row(NamedTuple):
    """One parameter in a table.

    Attributes:
      path: its name.
      shape: of the array; None of a dense leaf of masks, where it is not known.
      dtype: of the array.
      nonzero: the number of weights that are not zero, or that are kept.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: Any
    nonzero: int

    @property
    def size(self) -> int:
        """The number of weights."""
        return 0 if self.shape is None else math.prod(self.shape)


def sparsity_of(rows: Sequence[Row]) -> float:
    """Return the fraction of zeros in all rows together; 0 if they have no weights."""
    size = sum(row.size for row in rows)
    return (size - sum(row.nonzero for row in rows)) / max(size, 1)


def draw_table(
    rows: Sequence[Row],
    *,
    title: str | None = None,
    counted: str = "non-zero",
    more: Sequence[tuple[Column, Sequence[str]]] = (),
) -> Table:
    """Draw a table of parameters, with a row for all together.

    Args:
      rows: the parameters.
      title: a line above the table.
      counted: the name of the column of counts.
      more: more columns, each with its cells.

    Returns:
      The table, for a `rich.console.Console`.

    Raises:
      ImportError: if rich is not installed.
    """
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        # Folded, because a path that ends in "..." names nothing.
        *(Column(name, overflow="fold") for name in ("parameter", "shape", "dtype")),
        *(
            Column(name, justify="right", no_wrap=True)
            for name in ("weights", counted, "sparsity")
        ),
        *(column for column, _ in more),
        title=title,
    )
    for i, row in enumerate(rows):
        cells = (*_cells(row), *(column[i] for _, column in more))
        # As Text: a path such as ['a']['0'] is no markup.
        table.add_row(*map(Text, cells))
    table.add_section()
    table.add_row("total", "", "", *_numbers(rows), *([""] * len(more)))
    return table


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the rows and their total as a dictionary, ready for JSON."""
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


def _cells(row: Row) -> tuple[str, ...]:
    """Return the printed cells of one row."""
    path = printable(row.path)
    if row.shape is None:
        return (path, "", "", "", "", "")
    return (path, by(row.shape), str(row.dtype), *_numbers([row]))


def _numbers(rows: Sequence[Row]) -> tuple[str, str, str]:
    """Format the weights, the non-zeros and the sparsity of rows together."""
    counts = _counts(rows)
    percent = f"{100 * counts['sparsity']:.2f} %"
    return f"{counts['size']:,}", f"{counts['nonzero']:,}", percent


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the weights, the non-zeros and the sparsity of rows together."""
    return {
        "size": sum(row.size for row in rows),
        "nonzero": sum(row.nonzero for row in rows),
        "sparsity": sparsity_of(rows),
    }


def track(items: Sequence[_Item], title: str, *, shown: bool) -> Iterable[_Item]:
    """The items, with a progress bar if one is to be shown.

    Raises:
      ImportError: if it is, and rich is not installed.
    """
    if not shown:
        return items
    try:
        from rich import progress
    except ImportError:
        raise ImportError(
            'progress needs rich: pip install "gradprune_jax[report]"'
        ) from None
    return progress.track(items, title)
