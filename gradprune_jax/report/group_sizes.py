"""How wide a network is, before and after its channels were cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradprune_jax._program import Shrunk
from gradprune_jax.report.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_groups(
    shrunk: Shrunk, *, fixed: bool = False, title: str | None = None
) -> Figure:
    """Draw the size of every group of channels, before and after a cut.

    Args:
      shrunk: what `shrink` returned.
      fixed: whether to draw the groups that can't be cut too.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`: a bar for each group, in the order of the
      parameters, the part that stayed in colour.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there is no group to draw.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
      >>> params = {"w1": jnp.ones((2, 3)).at[:, 1].set(0), "w2": jnp.ones((3, 1))}
      >>> figure = plot_groups(gp.shrink(fn, params, jnp.ones((1, 2))))
      >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
      [3.0, 2.0]
    """
    sizes = {
        name: pair
        for name, pair in shrunk.sizes.items()
        if fixed or name not in shrunk.fixed
    }
    if not sizes:
        raise ValueError(
            f"there is no group of channels that can be cut:\n{shrunk}\nfixed=True "
            "draws the others."
        )
    figure, axes = new_figure("plot_groups", height=1.2 + 0.28 * len(sizes))
    names = list(map(plain, sizes))
    axes.barh(names, [old for old, _ in sizes.values()], color="0.88", label="before")
    axes.barh(names, [new for _, new in sizes.values()], color="#1d4ed8", label="after")
    for place, (old, new) in enumerate(sizes.values()):
        axes.annotate(
            f"{new:,} of {old:,}",
            (old, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    axes.invert_yaxis()  # the first group on top
    axes.set_xlim(0, 1.18 * max(old for old, _ in sizes.values()))
    axes.set_xlabel("channels")
    axes.set_title(title or "Channels of each group")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
