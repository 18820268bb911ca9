"""Reports on a pruned model, for people: tables and pictures.

Needs the extra ``report``: ``pip install "gradprune_jax[report]"``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _paths
from gradprune_jax._inspection import is_countable
from gradprune_jax._magnitudes import is_nonzero
from gradprune_jax._masks import get_masks, pair_with_masks
from gradprune_jax._state import GradualPruneState, is_dense

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from rich.table import Table

    from gradprune_jax._sensitivity import Sensitivity

# Curves of a picture that have names in its legend.
_MOST_NAMED = 10


def tabulate(tree: Any, masks: Any = None, *, title: str | None = None) -> Table:
    """A table of a model's parameters or masks: how large and how sparse each is.

    Args:
      tree: parameters, masks, or an optimizer's state, whose masks are shown. Plain,
        or boxed (``nnx.State``, ``nn.Partitioned``); not traced. Leaves that are
        neither floating nor bool are left out.
      masks: masks of these parameters, or the optimizer's state that has them; then
        the table says which parameters are pruned.
      title: a line above the table.

    Returns:
      A table with one row for each parameter and one for all together: path, shape,
      dtype, number of weights, those that are not zero (of masks: those that are kept)
      and sparsity. For ``rich.print``, or a ``rich.console.Console``.

    Raises:
      ImportError: if rich is not installed.
      ValueError: if the masks do not fit the parameters, or the tree has no values.

    Example:
      >>> from rich import print
      >>> kernel = jnp.array([[0.0, 0.5], [0.0, 2.0]])
      >>> print(tabulate({"dense": {"kernel": kernel, "bias": jnp.ones(2)}}))
      ┏━━━━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━┓
      ┃ parameter    ┃ shape ┃ dtype   ┃ weights ┃ non-zero ┃ sparsity ┃
      ┡━━━━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━┩
      │ dense/bias   │ 2     │ float32 │       2 │        2 │   0.00 % │
      │ dense/kernel │ 2x2   │ float32 │       4 │        2 │  50.00 % │
      ├──────────────┼───────┼─────────┼─────────┼──────────┼──────────┤
      │ total        │       │         │       6 │        4 │  33.33 % │
      └──────────────┴───────┴─────────┴─────────┴──────────┴──────────┘
    """
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        raise ImportError(
            'tabulate needs rich: pip install "gradprune_jax[report]"'
        ) from None
    if masks is None and _has_state(tree):
        tree = get_masks(tree)
    rows = _rows(tree, masks)
    are_masks = any(row.dtype == bool for row in rows)
    says_pruned = masks is not None or are_masks

    table = Table(title=title)
    for heading in ("parameter", "shape", "dtype"):
        # Folded, because a path that ends in "..." names nothing.
        table.add_column(heading, overflow="fold")
    for heading in ("weights", "kept" if are_masks else "non-zero", "sparsity"):
        table.add_column(heading, justify="right", no_wrap=True)
    if says_pruned:
        table.add_column("mask")
    for row in rows:
        mask = (("pruned" if row.is_pruned else "dense"),) if says_pruned else ()
        # As Text: a path such as ['a']['0'] is no markup.
        table.add_row(*(Text(cell) for cell in (*_cells(row), *mask)))
    table.add_section()
    table.add_row("total", "", "", *_numbers(rows), *([""] if says_pruned else []))
    return table


def plot_sensitivity(result: Sensitivity, *, title: str | None = None) -> Figure:
    """Draws the loss against sparsity, one curve for each parameter.

    Args:
      result: what :func:`gradprune_jax.sensitivity` returned.
      title: a line above the picture.

    Returns:
      A figure for ``figure.savefig``, tied to no window and no global state. Beside
      more than ten curves, only the ten that rise most have names.

    Raises:
      ImportError: if matplotlib is not installed.

    Example:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.arange(12.0).reshape(3, 4)}
      >>> losses = gp.sensitivity(lambda p: -p["kernel"].sum(), params, [0.0, 0.5])
      >>> figure = plot_sensitivity(losses)
      >>> figure.axes[0].get_xlabel()
      'sparsity, %'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            'plot_sensitivity needs matplotlib: pip install "gradprune_jax[report]"'
        ) from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(result.sparsities)
    percent = 100 * np.asarray(result.sparsities)[order]
    rises = np.nan_to_num(result.losses, nan=np.inf).max(axis=1, initial=-np.inf)
    named = set(np.argsort(-rises, kind="stable")[:_MOST_NAMED])
    for i, (path, losses) in enumerate(zip(result.paths, result.losses, strict=True)):
        style: dict[str, Any] = (
            {"label": path, "marker": "o", "markersize": 3}
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


@dataclasses.dataclass(frozen=True)
class _Row:
    """One parameter in the table; what a mask does not know of it is None."""

    name: str
    shape: tuple[int, ...] | None
    dtype: Any
    size: int
    nonzero: int
    is_pruned: bool


def _rows(tree: Any, masks: Any) -> list[_Row]:
    """The measured rows, in the order of the tree's leaves."""
    if masks is None:
        leaves = [
            (leaf.name, leaf.value, leaf.value)
            for leaf in _paths.named_leaves(tree, is_dense)
        ]
    else:
        # Whatever has no masks at all is left to get_masks, which says so.
        has_masks = all(_is_mask(node) for node in jax.tree.leaves(masks, is_dense))
        masks = masks if has_masks and not _has_state(masks) else get_masks(masks)
        leaves = pair_with_masks(tree, masks)
    return [
        _measure(name, leaf, mask)
        for name, leaf, mask in leaves
        if is_dense(leaf) or is_countable(leaf)
    ]


def _measure(name: str, leaf: Any, mask: Any) -> _Row:
    """The row of one parameter, or of one mask of a parameter unknown."""
    if is_dense(leaf):
        return _Row(name, None, None, 0, 0, is_pruned=False)
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name!r} has a shape but no values; call tabulate on arrays, not under "
            "jit. gradprune_jax.plan tabulates shapes."
        )
    return _Row(
        name=name,
        shape=np.shape(leaf),
        dtype=leaf.dtype,
        size=int(np.size(leaf)),
        nonzero=int(jnp.sum(is_nonzero(jnp.asarray(leaf)), dtype=jnp.uint32)),
        is_pruned=not is_dense(mask),
    )


def _cells(row: _Row) -> tuple[str, ...]:
    """The printed cells of one row."""
    if row.shape is None:  # a dense leaf of masks, which hold nothing about it
        return (row.name, "", "", "", "", "")
    shape = "x".join(map(str, row.shape)) or "scalar"
    return (row.name, shape, str(row.dtype), *_numbers([row]))


def _numbers(rows: Sequence[_Row]) -> tuple[str, str, str]:
    """Weights, those that are not zero, and the sparsity of rows together."""
    size = sum(row.size for row in rows)
    nonzero = sum(row.nonzero for row in rows)
    sparsity = (size - nonzero) / max(size, 1)
    return f"{size:,}", f"{nonzero:,}", f"{100 * sparsity:.2f} %"


def _has_state(tree: Any) -> bool:
    """Whether a tree is an optimizer's state with pruning in it."""

    def is_state(node: Any) -> bool:
        return isinstance(node, GradualPruneState)

    return any(map(is_state, jax.tree.leaves(tree, is_leaf=is_state)))


def _is_mask(leaf: Any) -> bool:
    """Whether a leaf is a mask or the mark of a dense parameter."""
    return is_dense(leaf) or getattr(leaf, "dtype", None) == np.bool_
