"""Curves: a schedule over steps, a metric over non-zeros, a loss over sparsities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax._mask_update import group_kept
from gradprune_jax._rules import Rule, ScheduleOrRules, as_rules
from gradprune_jax._schedules import is_concrete
from gradprune_jax._structures import NM
from gradprune_jax.report.figures import MOST_NAMED, UNNAMED, named, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradprune_jax._sensitivity import Sensitivity

# A point of a trade-off: non-zeros, the metric of one or several runs, and a name.
Point = tuple[float, Any] | tuple[float, Any, str]


def plot_schedule(
    schedule_or_rules: ScheduleOrRules,
    *,
    total_steps: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the sparsity against the step, with a dot for each mask update.

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
    schedules = [rule.schedule for rule in rules if rule.schedule is not None]
    if not all(map(is_concrete, schedules)):
        raise ValueError(
            "a traced schedule has no picture; call plot_schedule outside."
        )
    last = total_steps or max(
        1, math.ceil(1.1 * max((each.end_step for each in schedules), default=0))
    )
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


def plot_tradeoff(
    curves: Mapping[str, Sequence[Point]],
    *,
    metric: str = "metric",
    title: str | None = None,
) -> Figure:
    """Draw a metric against the number of non-zero parameters, on a log scale.

    Args:
      curves: for each name the points `(non-zeros, metric)` or `(non-zeros, metric,
        label)`. For several runs (seeds) the metric is a sequence, and is drawn as its
        mean and range. The label is written beside the point.
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
            **named(label),
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
    """Draw the loss against sparsity, one curve for each parameter.

    Args:
      result: what `sensitivity` returned.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`. Of more than ten curves, only the ten that rise
      most have names.

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
    steepest = set(np.argsort(-rises, kind="stable")[:MOST_NAMED])
    for i, (path, losses) in enumerate(zip(result.paths, result.losses, strict=True)):
        marks = {"marker": "o", "markersize": 3}
        style = named(path) | marks if i in steepest else UNNAMED
        axes.plot(percent, losses[order], **style)
    axes.axhline(result.baseline, color="0.4", linestyle=":", label="not pruned")
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("loss")
    axes.set_title(title or "Each parameter alone pruned")
    axes.legend(fontsize="small")
    return figure


def _curve(rule: Rule) -> tuple[list[int], np.ndarray]:
    """Return the steps of a rule's mask updates, and its sparsity from each one on."""
    schedule: Any = rule.schedule
    steps = list(schedule.update_steps)
    sparsities = schedule.sparsity(np.array(steps))
    if isinstance(rule.structure, NM):
        kept = group_kept(rule.structure, sparsities, sparsities[-1])
        sparsities = 1 - np.asarray(kept) / rule.structure.of
    return steps, np.asarray(sparsities, float)
