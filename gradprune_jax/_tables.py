"""Texts: names, shapes and shares as they are printed."""

from __future__ import annotations

from collections.abc import Sequence


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are.

    Examples:
      >>> some_of(["a/w", "b/w", "c/w"], most=2)
      "'a/w', 'b/w' and 1 more"
    """
    return first_of([*map(repr, names)], most)


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """The first texts, as they are, and how many more there are."""
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def share(part: int, whole: int) -> str:
    """A share in per cent; only what is nothing is 0 %, only what is all is 100 %.

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
