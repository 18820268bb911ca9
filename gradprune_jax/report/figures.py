"""What every picture begins with: a figure, and names that are drawn as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Curves that have names in the legend of a picture; the others are grey.
MOST_NAMED = 10
UNNAMED: dict[str, Any] = {"color": "0.8", "zorder": 1}


def new_figure(
    caller: str, width: float = 8, height: float = 5, axes: bool = True
) -> tuple[Figure, Any]:
    """Make a figure that belongs to no window, with one picture in it.

    Args:
      caller: the function that needs matplotlib, for the error.
      width: in inches.
      height: in inches.
      axes: whether to put the picture in; a caller that divides the figure does not.

    Returns:
      The figure, and the axes of the picture, or None.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f'{caller} needs matplotlib: pip install "gradprune_jax[report]"'
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots() if axes else None


def named(name: str) -> dict[str, Any]:
    """Return how a curve is drawn that has a name in the legend.

    matplotlib leaves out names that begin with an underscore: a space of no width is
    put before it.
    """
    label = plain(name)
    return {"label": f"\u200b{label}" if label.startswith("_") else label}


def plain(name: str) -> str:
    """Escape a name: matplotlib reads what stands between dollars as a formula."""
    return name.replace("$", r"\$")
