"""Curves and bars: schedules, sparsities, trade-offs and sensitivities.

Every function returns a figure for `figure.savefig`, tied to no window and to no
global state; in a notebook it shows itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._inspection import sparsity
from gradprune_jax._mask_update import group_kept
from gradprune_jax._masks import get_masks
from gradprune_jax._rules import Rule, as_rules
from gradprune_jax._structures import NM
from gradprune_jax.report.table import has_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradprune_jax._rules import ScheduleOrRules
    from gradprune_jax._sensitivity import Sensitivity

# Curves of a picture that have names in its legend.
_MOST_NAMED = 10

# What `metrics` puts before the path of a parameter.
_PREFIX = "sparsity/"

# A point of a trade-off: non-zeros, the metric of one or several runs, and a name.
Point = tuple[float, Any] | tuple[float, Any, str]


def plot_schedule(
    schedule_or_rules: ScheduleOrRules,
    *,
    total_steps: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draws the sparsity against the step, with a dot for each mask update.

    Args:
      schedule_or_rules: a schedule, a rule, or a list of rules, of which each that
        prunes is a curve. N:M goes to its own sparsity.
      total_steps: the number of optimizer updates of the training, where the picture
        ends; by default a tenth beyond the last mask update.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if a schedule is traced.

    Examples:
      >>> from gradprune_jax import polynomial_schedule
      >>> figure = plot_schedule(polynomial_schedule(0.9, 1_000, 10_000))
      >>> figure.axes[0].get_ylabel()
      'sparsity, %'
    """
    figure, axes = new_figure("plot_schedule")
    rules = [rule for rule in as_rules(schedule_or_rules) if rule.schedule is not None]
    ends = [rule.schedule.end_step for rule in rules if rule.schedule is not None]
    if any(map(is_traced, ends)):
        raise ValueError(
            "a traced schedule has no picture; call plot_schedule outside."
        )
    last = total_steps or max(1, math.ceil(1.1 * max(ends, default=0)))
    for rule in rules:
        steps, values = _curve(rule)
        line = axes.step(
            [0, *steps, max(last, steps[-1])],
            100 * np.array([0, *values, values[-1]]),  # dense before the first
            where="post",
            label=plain(str(rule)),
        )[0]
        axes.plot(steps, 100 * values, ".", color=line.get_color(), markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("sparsity, %")
    axes.set_title(title or "Sparsity schedule")
    axes.grid(color="0.9")
    if len(rules) > 1:
        axes.legend(fontsize="small")
    return figure


def plot_sparsity(fractions: Any, *, title: str | None = None) -> Figure:
    """Draws how sparse each parameter is, now or over time.

    Args:
      fractions: what `sparsity` returned, or parameters, masks or
        an optimizer's state: a bar for each parameter. Or a sequence of what
        `metrics` returned in the course of a training: a curve for
        each parameter over the count of updates.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`. Beside more than ten curves, only the total and
      the ten that end sparsest have names.

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
    if has_state(fractions):
        fractions = get_masks(fractions)
    measured = fractions if _is_measured(fractions) else sparsity(fractions)
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


def plot_tradeoff(
    curves: Mapping[str, Sequence[Point]],
    *,
    metric: str = "metric",
    title: str | None = None,
) -> Figure:
    """Draws a metric against the number of non-zero parameters, on a log scale.

    Args:
      curves: by name, points of non-zeros and the metric; of several runs (seeds), the
        metric is a sequence, drawn as its mean and range. A third entry, if there is
        one, is written beside the point.
      metric: what the metric is called.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`.

    Raises:
      ImportError: if matplotlib is not installed.

    Examples:
      >>> dense = [(100_000, 88.6), (400_000, 90.1)]
      >>> sparse = [(100_000, [88.9, 89.1], "75 %"), (400_000, [90.0, 90.2], "dense")]
      >>> figure = plot_tradeoff({"small-dense": dense, "large-sparse": sparse})
      >>> figure.axes[0].get_xlabel()
      'non-zero parameters'
    """
    figure, axes = new_figure("plot_tradeoff", width=7, height=4.4)
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    for curve, (label, points) in enumerate(curves.items()):
        values = [np.atleast_1d(np.asarray(point[1], float)) for point in points]
        means = np.array([each.mean() for each in values])
        ranges = [
            [mean - each.min(), each.max() - mean]
            for mean, each in zip(means, values, strict=True)
        ]
        color = f"C{curve}"
        axes.errorbar(
            [point[0] for point in points],
            means,
            yerr=np.transpose(ranges),
            label=label,
            color=color,
            marker="os^Dv"[curve % 5],
            capsize=3,
        )
        for point, mean in zip(points, means, strict=True):
            axes.annotate(
                point[2] if len(point) == 3 else "",
                (point[0], mean),
                xytext=(5, 5),
                textcoords="offset points",
                fontsize="x-small",
                color=color,
            )
    axes.set_xscale("log")
    axes.margins(x=0.1)  # room for the names of the last points
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("non-zero parameters")
    axes.set_ylabel(metric)
    axes.set_title(title or "")
    axes.grid(which="both", color="0.9", linewidth=0.5)
    axes.legend()
    return figure


def plot_sensitivity(result: Sensitivity, *, title: str | None = None) -> Figure:
    """Draws the loss against sparsity, one curve for each parameter.

    Args:
      result: what `sensitivity` returned.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`, tied to no window and no global state. Beside
      more than ten curves, only the ten that rise most have names.

    Raises:
      ImportError: if matplotlib is not installed.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": np.arange(12.0).reshape(3, 4)}
      >>> losses = gp.sensitivity(lambda p: -p["kernel"].sum(), params, [0.0, 0.5])
      >>> figure = plot_sensitivity(losses)
      >>> figure.axes[0].get_xlabel()
      'sparsity, %'
    """
    figure, axes = new_figure("plot_sensitivity")
    order = np.argsort(result.sparsities)
    percent = 100 * np.asarray(result.sparsities)[order]
    rises = np.nan_to_num(result.losses, nan=np.inf).max(axis=1, initial=-np.inf)
    named = set(np.argsort(-rises, kind="stable")[:_MOST_NAMED])
    for i, (path, losses) in enumerate(zip(result.paths, result.losses, strict=True)):
        style: dict[str, Any] = (
            {"label": plain(path), "marker": "o", "markersize": 3}
            if i in named
            else {"color": "0.8", "zorder": 1}
        )
        axes.plot(percent, losses[order], **style)
    axes.axhline(result.baseline, color="0.4", linestyle=":", label="not pruned")
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("loss")
    axes.set_title(title or "Each parameter alone pruned")
    axes.legend(fontsize="small")
    return figure


def new_figure(
    caller: str, width: float = 8, height: float = 5, axes: bool = True
) -> tuple[Figure, Any]:
    """A figure of its own, with one picture in it unless the caller divides it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            f'{caller} needs matplotlib: pip install "gradprune_jax[report]"'
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots() if axes else None


def plain(name: str) -> str:
    """A name as it is: matplotlib reads what stands between dollars as a formula."""
    return name.replace("$", r"\$")


def _curve(rule: Rule) -> tuple[list[int], np.ndarray]:
    """The steps of a rule's mask updates, and its sparsity from each of them on."""
    schedule: Any = rule.schedule
    steps = list(schedule.update_steps)
    sparsities = schedule.sparsity(np.array(steps))
    if isinstance(rule.structure, NM):
        kept = group_kept(rule.structure, sparsities, sparsities[-1])
        sparsities = 1 - np.asarray(kept) / rule.structure.of
    return steps, np.asarray(sparsities, float)


def _is_measured(tree: Any) -> bool:
    """Whether a tree is a flat dictionary of numbers, not of arrays."""
    return isinstance(tree, Mapping) and all(
        hasattr(value, "__float__") and np.ndim(value) == 0 for value in tree.values()
    )


def _plot_over_time(logged: Sequence[Mapping[str, Any]], title: str | None) -> Figure:
    """A curve for each parameter over the count of updates."""
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
    sparsest = sorted(curves, key=lambda name: -curves[name][-1])[:_MOST_NAMED]
    for name, values in curves.items():
        style: dict[str, Any] = (
            {"label": plain(name)}
            if name in sparsest
            else {"color": "0.8", "zorder": 1}
        )
        axes.plot(counts, values, drawstyle="steps-post", **style)
    if total is not None:
        axes.plot(counts, total, drawstyle="steps-post", color="black", label="total")
    axes.set_xlabel("updates")
    axes.set_ylabel("sparsity, %")
    axes.set_title(title or "Sparsity of each parameter")
    axes.grid(color="0.9")
    axes.legend(fontsize="small")
    return figure
