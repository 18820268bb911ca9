"""A table of a model's parameters or masks: how large and how sparse each is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._inspection import is_countable
from gradprune_jax._masks import get_masks, has_masks
from gradprune_jax._pairing import nonzero, pair_with_masks
from gradprune_jax._state import is_dense
from gradprune_jax._tables import Row, draw_table
from gradprune_jax._top_k import count_true

if TYPE_CHECKING:
    from rich.table import Table


def tabulate(tree: Any, masks: Any = None, *, title: str | None = None) -> Table:
    """Make a table of parameters or masks: how large and how sparse each one is.

    Args:
      tree: parameters, masks, or an optimizer's state, whose masks are shown. Plain,
        or boxed (`nnx.State`, `nn.Partitioned`); not traced. Leaves that are
        neither floating nor bool are left out.
      masks: masks of these parameters, or the optimizer's state that has them; then
        the table says which parameters are pruned.
      title: a line above the table.

    Returns:
      A table with one row for each parameter and one for all together: path, shape,
      dtype, number of weights, those that are not zero (of masks: those that are kept)
      and sparsity. For `rich.print`, or a `rich.console.Console`.

    Raises:
      ImportError: if rich is not installed.
      ValueError: if the masks do not fit the parameters, or the tree has no values.

    Examples:
      >>> import jax.numpy as jnp
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
        from rich.table import Column
    except ImportError:
        raise ImportError(
            'tabulate needs rich: pip install "gradprune_jax[report]"'
        ) from None
    if masks is None:
        tree = masks_of_state(tree)
    leaves = _leaves(tree, masks)
    rows = [_measure(name, leaf) for name, leaf, _ in leaves]
    are_masks = any(row.dtype == bool for row in rows)
    more = []
    if masks is not None or are_masks:
        cells = ["dense" if is_dense(mask) else "pruned" for _, _, mask in leaves]
        more.append((Column("mask"), cells))
    return draw_table(
        rows, title=title, counted="kept" if are_masks else "non-zero", more=more
    )


def _leaves(tree: Any, masks: Any) -> list[tuple[str, Any, Any]]:
    """Return name, leaf and mask of each leaf to show, in the order of the tree."""
    if masks is None:
        leaves = [
            (leaf.name, leaf.value, leaf.value)
            for leaf in _tree.named_leaves(tree, is_dense)
        ]
    else:
        # Whatever has no masks at all is left to get_masks, which says so.
        are_masks = all(_is_mask(node) for node in jax.tree.leaves(masks, is_dense))
        masks = masks if are_masks and not has_masks(masks) else get_masks(masks)
        leaves = pair_with_masks(tree, masks)
    return [each for each in leaves if is_dense(each[1]) or is_countable(each[1])]


def _measure(name: str, leaf: Any) -> Row:
    """Count the non-zeros of one parameter, or what one mask keeps."""
    if is_dense(leaf):
        return Row(name, None, None, 0)
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name!r} has a shape but no values; call tabulate on arrays, not under "
            "jit. gradprune_jax.plan tabulates shapes."
        )
    live = int(count_true(nonzero(leaf)).integers())
    return Row(name, np.shape(leaf), leaf.dtype, live)


def masks_of_state(tree: Any) -> Any:
    """Return the masks of an optimizer's state; any other tree as it is."""
    return get_masks(tree) if has_masks(tree) else tree


def _is_mask(leaf: Any) -> bool:
    """Whether a leaf is a mask or the mark of a dense parameter."""
    return is_dense(leaf) or getattr(leaf, "dtype", None) == np.bool_
