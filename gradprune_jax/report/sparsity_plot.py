"""How sparse each parameter is: bars of now, curves over a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._inspection import sparsity
from gradprune_jax.report.figures import MOST_NAMED, UNNAMED, named, new_figure, plain
from gradprune_jax.report.table import masks_of_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradprune_jax._sensitivity import SparsityAllocation

# What `metrics` puts before the path of a parameter.
_PREFIX = "sparsity/"


def plot_sparsity(fractions: Any, *, title: str | None = None) -> Figure:
    """Draw how sparse each parameter is, now or over time.

    Args:
      fractions: what `sparsity` returned, or parameters, masks or an optimizer's state:
        a bar for each parameter. Or a sequence of what `metrics` returned during a
        training: a curve for each parameter over the count of updates.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`. Of more than ten curves, only the ten that end
      sparsest, and the total, have names.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there is nothing to draw.

    Examples:
      >>> figure = plot_sparsity({"kernel": np.array([0.0, 2.0]), "bias": np.ones(2)})
      >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
      [0.0, 50.0, 25.0]
    """
    if isinstance(fractions, Sequence) and all(
        isinstance(each, Mapping) and "count" in each for each in fractions
    ):
        return _plot_over_time(fractions, title)
    fractions = masks_of_state(fractions)
    measured = fractions if _is_measured(fractions) else sparsity(fractions)
    if not set(measured) - {"total"}:
        raise ValueError("there is no parameter to draw.")
    if any(map(is_traced, measured.values())):
        raise ValueError("the fractions are traced; call plot_sparsity outside jit.")
    figure, axes = new_figure("plot_sparsity", height=1 + 0.25 * (len(measured) + 1))
    names = list(measured)
    axes.barh(
        list(map(plain, names)),
        [100 * float(measured[name]) for name in names],
        color="#1d4ed8",
    )
    axes.invert_yaxis()  # the first parameter on top
    axes.set_xlim(0, 100)
    axes.set_xlabel("sparsity, %")
    axes.set_title(title or "Sparsity of each parameter")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    return figure


def _is_measured(tree: Any) -> bool:
    """Whether a tree is a flat dictionary of numbers, not of arrays."""
    return isinstance(tree, Mapping) and all(
        hasattr(value, "__float__") and np.ndim(value) == 0 for value in tree.values()
    )


def plot_allocation(
    allocation: SparsityAllocation, *, title: str | None = None
) -> Figure:
    """Draw how sparse each parameter becomes under a budget.

    Args:
      allocation: what `allocate_sparsity` returned.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`: a bar for each parameter, beside it the weights
      that it keeps, and a line at the sparsity of all of them together.

    Raises:
      ImportError: if matplotlib is not installed.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"a": np.array([[1.0, 2.0]]), "b": np.array([[8.0, 9.0]])}
      >>> loss_fn = lambda p: -sum(x.sum() for x in p.values())
      >>> measured = gp.sensitivity(loss_fn, params, [0.5, 1.0], where=".*")
      >>> figure = plot_allocation(gp.allocate_sparsity(measured, params, 2))
      >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
      [100.0, 0.0]
    """
    rows = len(allocation.paths)
    figure, axes = new_figure("plot_allocation", height=1.5 + 0.25 * rows)
    bars = axes.barh(
        list(map(plain, allocation.paths)),
        [100 * sparsity for sparsity in allocation.sparsities],
        color="#1d4ed8",
    )
    axes.bar_label(bars, [f"{kept:,}" for kept in allocation.kept], padding=3)
    total = 1 - sum(allocation.kept) / max(sum(allocation.sizes), 1)
    axes.axvline(100 * total, color="0.4", linestyle=":", label="all together")
    axes.invert_yaxis()  # the first parameter on top
    axes.set_xlim(0, 115)  # room for the labels
    axes.set_xlabel("sparsity, %; beside each bar the weights that are kept")
    axes.set_title(title or f"Sparsities for {allocation.budget}")
    axes.legend(fontsize="small")
    return figure


def _plot_over_time(logged: Sequence[Mapping[str, Any]], title: str | None) -> Figure:
    """Draw a curve for each parameter over the count of updates."""
    if not logged:
        raise ValueError(
            "there are no metrics to draw; log some: gradprune_jax.metrics."
        )
    figure, axes = new_figure("plot_sparsity")
    counts = [int(each["count"]) for each in logged]
    curves = {
        name.removeprefix(_PREFIX): [100 * float(each[name]) for each in logged]
        for name in logged[-1]
        if name.startswith(_PREFIX)
    }
    total = curves.pop("total", None)
    sparsest = sorted(curves, key=lambda name: -curves[name][-1])[:MOST_NAMED]
    for name, values in curves.items():
        style = named(name) if name in sparsest else UNNAMED
        axes.plot(counts, values, drawstyle="steps-post", **style)
    if total is not None:
        axes.plot(counts, total, drawstyle="steps-post", color="black", label="total")
    axes.set_xlabel("updates")
    axes.set_ylabel("sparsity, %")
    axes.set_title(title or "Sparsity of each parameter")
    axes.grid(color="0.9")
    axes.legend(fontsize="small")
    return figure
