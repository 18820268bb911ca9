"""The picture of the demonstration: curves, layers, and a mask, in one PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax.demo.models import CHANNELS, FIRST_DENSE_KERNEL, GRID, HIDDEN
from gradprune_jax.demo.results import mask_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gradprune_jax.demo.training import Run

_DENSE = "#64748b"
_PRUNED = "#1d4ed8"
_SPARSITY = "#ea580c"
_INK = "#1f2937"
_GRID_LINES = "#e5e7eb"

# Of the mask's image: the ground of an empty tile and of the densest, a kept weight.
_PAPER = np.array((255, 255, 255))
_TINT = np.array((191, 219, 254))
_KEPT = np.array((30, 58, 138))

_DPI = 150
_SIZE = (13.6, 9.4)  # inches
_TILE_GAP = 4  # pixels between the image positions of the mask


def draw(dense: Run, pruned: Run, summary: dict[str, Any]) -> Figure:
    """Draw both runs.

    Args:
      dense: the run without pruning.
      pruned: the run with it.
      summary: what `results.summarise` returned for them.

    Returns:
      A figure for `figure.savefig`, which belongs to no window.

    Raises:
      ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'the picture needs matplotlib: pip install "gradprune_jax[cli]"'
        ) from None
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    mask = _tiles(mask_of(pruned, FIRST_DENSE_KERNEL))
    # One entry of the mask is one pixel of the file; anything else draws a moiré.
    height, width = (size / _DPI for size in mask.shape[:2])
    left = (_SIZE[0] - width) / 2
    bottom = 0.5
    top = bottom + height + 1.15

    def place(x: float, y: float, width: float, height: float) -> Axes:
        return figure.add_axes(
            (x / _SIZE[0], y / _SIZE[1], width / _SIZE[0], height / _SIZE[1])
        )

    upper = _SIZE[1] - top - 1.3
    _draw_curves(place(left, top, 6.4, upper), dense, pruned)
    _draw_layers(place(left + 8.75, top, width - 8.75, upper), summary)
    _draw_mask(place(left, bottom, width, height), mask, summary)
    outcome, before = summary["pruned"], summary["dense"]
    figure.text(
        left / _SIZE[0],
        1 - 0.42 / _SIZE[1],
        f"{outcome['parameters_nonzero']:,} of {outcome['parameters']:,} weights, "
        f"{100 * outcome['accuracy']:.2f} % test accuracy "
        f"(dense: {100 * before['accuracy']:.2f} %)",
        fontsize=17,
        fontweight="bold",
        color=_INK,
        va="center",
    )
    training = summary["training"]
    figure.text(
        left / _SIZE[0],
        1 - 0.76 / _SIZE[1],
        f"{training['images']}: {training['train_images']:,} images to train on, "
        f"{training['test_images']:,} to test; {training['steps']:,} steps",
        fontsize=11,
        color=_DENSE,
        va="center",
    )
    return figure


def _draw_curves(axes: Axes, dense: Run, pruned: Run) -> None:
    """Draw the accuracy of both runs, and the sparsity on an axis of its own."""
    _style(axes, "Accuracy and sparsity during training")
    behind = axes.twinx()
    behind.spines[:].set_visible(False)
    # The first accuracies, of a network that knows nothing, would flatten the rest.
    lowest = min(*dense.accuracies[1:], *pruned.accuracies[1:])
    highest = max(*dense.accuracies, *pruned.accuracies)
    axes.set_ylim(max(0.0, 100 * lowest - 3), 100 * highest + 1.5)
    behind.set_ylim(0, 100)
    steps = np.arange(1, len(pruned.sparsities) + 1)
    sparsities = 100 * pruned.sparsities
    behind.fill_between(
        steps, sparsities, step="post", color=_SPARSITY, alpha=0.10, lw=0
    )
    (line,) = behind.step(steps, sparsities, where="post", color=_SPARSITY, lw=1.4)
    lines = [
        axes.plot(
            run.evaluated_at,
            100 * np.array(run.accuracies),
            color=color,
            lw=2.2,
            marker="o",
            ms=4,
        )[0]
        for run, color in ((dense, _DENSE), (pruned, _PRUNED))
    ]
    axes.set_xlim(0, 1.01 * len(dense.losses))  # room for the last marker
    axes.set_xlabel("step")
    axes.set_ylabel("test accuracy, %")
    behind.set_ylabel("sparsity of the pruned network, %", color=_SPARSITY)
    behind.tick_params(colors=_SPARSITY, length=0)
    # The accuracies stand in front, which needs their background to be clear.
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.legend(
        [*lines, line],
        ["accuracy, dense", "accuracy, pruned", "sparsity"],
        loc="lower right",
        frameon=True,
        facecolor="white",
        edgecolor="none",
        framealpha=0.85,
    )


def _draw_layers(axes: Axes, summary: dict[str, Any]) -> None:
    """Draw the sparsity of each parameter, as bars."""
    _style(axes, "Sparsity of each parameter")
    parameters = summary["parameters"]
    sparsities = [100 * (1 - row["nonzero"] / row["weights"]) for row in parameters]
    positions = range(len(parameters))
    axes.barh(positions, [100] * len(parameters), color="#f1f5f9", height=0.68)
    axes.barh(positions, sparsities, color=_SPARSITY, height=0.68)
    for position, row, sparsity in zip(positions, parameters, sparsities, strict=True):
        inside = sparsity > 60
        axes.text(
            sparsity - 2 if inside else sparsity + 2,
            position,
            f"{row['nonzero']:,} of {row['weights']:,} left",
            ha="right" if inside else "left",
            va="center",
            fontsize=9,
            color="white" if inside else _INK,
        )
    axes.set_yticks(list(positions), [row["path"] for row in parameters])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("zeros, %")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)


def _draw_mask(axes: Axes, image: np.ndarray, summary: dict[str, Any]) -> None:
    """Draw the mask, one tile for each image position that the layer sees."""
    kernel = next(
        row for row in summary["parameters"] if row["path"] == FIRST_DENSE_KERNEL
    )
    rows, columns = GRID
    axes.imshow(image, interpolation="none", aspect="auto")
    axes.set_axis_off()
    axes.set_title(
        f"Mask of {FIRST_DENSE_KERNEL}: one pixel a weight, "
        f"{kernel['nonzero']:,} of {kernel['weights']:,} kept",
        loc="left",
        fontsize=12,
        fontweight="bold",
        color=_INK,
        pad=22,
    )
    axes.text(
        0,
        1.012,
        f"{rows}x{columns} tiles: the image positions that the layer sees; in each, "
        f"{CHANNELS[-1]} channels down and {HIDDEN} units across. The tint of a tile "
        "is its density.",
        transform=axes.transAxes,
        fontsize=10,
        color=_DENSE,
        va="bottom",
    )


def _tiles(mask: np.ndarray) -> np.ndarray:
    """Make an RGB image of the first dense kernel's mask, one tile for a position.

    Args:
      mask: bool of shape (rows * columns * channels, units).

    Returns:
      uint8 (rows * (channels + gap) - gap, columns * (units + gap) - gap, 3).
    """
    rows, columns = GRID
    channels, units = CHANNELS[-1], HIDDEN
    kept = mask.reshape(rows, columns, channels, units)
    density = kept.mean(axis=(2, 3))
    densest = max(float(density.max()), 1e-9)
    canvas = np.full(
        (
            rows * (channels + _TILE_GAP) - _TILE_GAP,
            columns * (units + _TILE_GAP) - _TILE_GAP,
            3,
        ),
        255,
        np.uint8,
    )
    for row, column in np.ndindex(rows, columns):
        share = density[row, column] / densest
        background = _PAPER + share * (_TINT - _PAPER)
        top, left = row * (channels + _TILE_GAP), column * (units + _TILE_GAP)
        canvas[top : top + channels, left : left + units] = np.where(
            kept[row, column, :, :, None], _KEPT, background
        ).astype(np.uint8)
    return canvas


def _style(axes: Axes, title: str) -> None:
    """Set what the two upper panels have in common."""
    axes.set_title(
        title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=10
    )
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID_LINES)
    axes.grid(axis="y", color=_INK, alpha=0.1, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0)
