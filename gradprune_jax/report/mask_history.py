"""How masks change as a network is trained: what is kept, dropped and grown."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gradprune_jax import _tree
from gradprune_jax._pairing import pair_with_masks
from gradprune_jax._state import is_dense
from gradprune_jax.report.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_mask_history(masks: Mapping[int, Any], *, title: str | None = None) -> Figure:
    """Draw how many weights were kept, dropped and grown from each masks to the next.

    Args:
      masks: by step, as `get_masks` returns them; two at least, of one network.
      title: a line above the picture.

    Returns:
      A figure for `figure.savefig`: at each step but the first a bar, in per cent of
      the weights that have a mask. Kept and grown weights are above zero, dropped ones
      below.

    Raises:
      ImportError: if matplotlib is not installed.
      ValueError: if there are fewer than two masks, they do not fit each other, or
        nothing in them is pruned.

    Examples:
      >>> history = {
      ...     0: {"kernel": np.array([True, True, False, False])},
      ...     100: {"kernel": np.array([True, False, True, False])},
      ... }
      >>> figure = plot_mask_history(history)
      >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
      [25.0, 25.0, -25.0]
    """
    if len(masks) < 2:
        raise ValueError(
            f"there are masks of {len(masks)} step(s); a history needs those of two or "
            "more: {step: gp.get_masks(opt_state), ...}."
        )
    steps = sorted(masks)
    changes = np.array(
        [_change(masks[one], masks[other]) for one, other in itertools.pairwise(steps)]
    )
    kept, grown, dropped = changes.T
    figure, axes = new_figure("plot_mask_history")
    places = [str(step) for step in steps[1:]]
    axes.bar(places, kept, color="#1d4ed8", label="kept")
    axes.bar(places, grown, bottom=kept, color="#16a34a", label="grown")
    axes.bar(places, -dropped, color="#dc2626", label="dropped")
    axes.axhline(0, color="0.3", linewidth=0.8)
    if len(places) > 12:
        axes.set_xticks(range(0, len(places), -(-len(places) // 12)))
    axes.set_xlabel("step")
    axes.set_ylabel("weights, %")
    axes.set_title(title or "Masks from step to step")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _change(before: Any, after: Any) -> tuple[float, float, float]:
    """The weights that were kept, grown and dropped, in per cent."""
    kept = grown = dropped = total = 0
    before = _tree.without_variables(before)
    for _, old, new in pair_with_masks(before, after):
        if is_dense(old) or is_dense(new):
            continue
        old, new = np.asarray(old), np.asarray(new)
        kept += int((old & new).sum())
        grown += int((new & ~old).sum())
        dropped += int((old & ~new).sum())
        total += old.size
    if not total:
        raise ValueError("nothing is pruned in these masks; all leaves are dense.")
    share = 100 / total
    return share * kept, share * grown, share * dropped
