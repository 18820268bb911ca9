"""Masks as images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._inspection import is_countable
from gradprune_jax._tables import by
from gradprune_jax.report.figures import new_figure, plain
from gradprune_jax.report.table import masks_of_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pixels along a side of a mask's image, and images in one picture.
_MOST_PIXELS = 256
_MOST_IMAGES = 12


def plot_masks(tree: Any, *, title: str | None = None) -> Figure:
    """Draw masks as images: black where a weight is pruned, white where it is kept.

    A leaf is a matrix of its last axis against all others. More than 256 rows or
    columns are drawn as densities of equal blocks.

    Args:
      tree: masks, an optimizer's state, or parameters, whose non-zeros are drawn as
        kept; plain or boxed. Leaves of one axis are left out.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`, with the twelve largest leaves.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there is no leaf to draw.

    Examples:
      >>> figure = plot_masks({"kernel": np.eye(4), "bias": np.ones(4)})
      >>> [axes.get_title() for axes in figure.axes]
      ['kernel (4x4), 75.0 %']
    """
    leaves = [
        leaf
        for leaf in _tree.named_leaves(masks_of_state(tree))
        if is_countable(leaf.value) and np.ndim(leaf.value) >= 2 and np.size(leaf.value)
    ]
    _tree.check_values(leaves, "plot_masks")
    if not leaves:
        raise ValueError("there is no mask or parameter of two or more axes to draw.")
    largest = sorted(leaves, key=lambda leaf: -np.size(leaf.value))[:_MOST_IMAGES]
    drawn = [leaf for leaf in leaves if any(leaf is each for each in largest)]
    columns = min(len(drawn), 4)
    rows = math.ceil(len(drawn) / columns)
    figure, _ = new_figure("plot_masks", width=3 * columns, height=3 * rows, axes=False)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid[len(drawn) :]:
        axes.remove()
    for axes, leaf in zip(grid, drawn, strict=False):
        mask = np.asarray(leaf.value) != 0
        matrix = mask.reshape(-1, mask.shape[-1])
        image = _densities(_densities(matrix.astype(np.float32)).T).T
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        pruned = 100 * (1 - mask.mean())
        axes.set_title(
            f"{plain(leaf.name)} ({by(mask.shape)}), {pruned:.1f} %",
            fontsize="x-small",
        )
        axes.set_xticks([])
        axes.set_yticks([])
    if title is not None:
        figure.suptitle(title)
    return figure


def _densities(matrix: np.ndarray) -> np.ndarray:
    """Average rows in equal blocks, so that at most 256 are left."""
    length = math.ceil(len(matrix) / _MOST_PIXELS)
    starts = np.arange(0, len(matrix), length)
    counts = np.diff([*starts, len(matrix)])
    return np.add.reduceat(matrix, starts, axis=0) / counts[:, None]
