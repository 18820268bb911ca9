"""Tables of parameters: how large and how sparse each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._inspection import is_countable
from gradprune_jax._masks import get_masks
from gradprune_jax._pairing import pair_with_masks
from gradprune_jax._state import GradualPruneState, is_dense
from gradprune_jax._top_k import is_nonzero

if TYPE_CHECKING:
    from rich.table import Column, Table


class Row(NamedTuple):
    """One parameter in a table.

    Attributes:
      path: its name.
      shape: of the array; None of a dense leaf of masks, which says nothing of it.
      dtype: of the array.
      nonzero: the number of weights that are not zero, or that are kept.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: Any
    nonzero: int

    @property
    def size(self) -> int:
        """The number of weights."""
        return 0 if self.shape is None else math.prod(self.shape)


def printable(name: str) -> str:
    r"""A name as it can be printed: what is no letter, sign or space is escaped.

    A terminal obeys control characters, whoever wrote them into a file.

    Examples:
      >>> print(printable("\x1b[2Jkernel"))
      \x1b[2Jkernel
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in name
    )


def sparsity_of(rows: Sequence[Row]) -> float:
    """The fraction of zeros of rows together; 0 of nothing."""
    size = sum(row.size for row in rows)
    return (size - sum(row.nonzero for row in rows)) / max(size, 1)


def draw_table(
    rows: Sequence[Row],
    *,
    title: str | None = None,
    counted: str = "non-zero",
    more: Sequence[tuple[Column, Sequence[str]]] = (),
) -> Table:
    """Rows and their total as a table.

    Args:
      rows: the parameters.
      title: a line above the table.
      counted: what the column of counts is called.
      more: more columns, each with its cells.

    Returns:
      The table.

    Raises:
      ImportError: if rich is not installed.
    """
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        # Folded, because a path that ends in "..." names nothing.
        *(Column(name, overflow="fold") for name in ("parameter", "shape", "dtype")),
        *(
            Column(name, justify="right", no_wrap=True)
            for name in ("weights", counted, "sparsity")
        ),
        *(column for column, _ in more),
        title=title,
    )
    for i, row in enumerate(rows):
        cells = (*_cells(row), *(column[i] for _, column in more))
        # As Text: a path such as ['a']['0'] is no markup.
        table.add_row(*map(Text, cells))
    table.add_section()
    table.add_row("total", "", "", *_numbers(rows), *([""] * len(more)))
    return table


def tabulate(tree: Any, masks: Any = None, *, title: str | None = None) -> Table:
    """A table of a model's parameters or masks: how large and how sparse each is.

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
    if masks is None and has_state(tree):
        tree = get_masks(tree)
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
    """The leaves to show with their names and masks, in the order of the tree."""
    if masks is None:
        leaves = [
            (leaf.name, leaf.value, leaf.value)
            for leaf in _tree.named_leaves(tree, is_dense)
        ]
    else:
        # Whatever has no masks at all is left to get_masks, which says so.
        has_masks = all(_is_mask(node) for node in jax.tree.leaves(masks, is_dense))
        masks = masks if has_masks and not has_state(masks) else get_masks(masks)
        leaves = pair_with_masks(tree, masks)
    return [each for each in leaves if is_dense(each[1]) or is_countable(each[1])]


def _measure(name: str, leaf: Any) -> Row:
    """The row of one parameter, or of one mask."""
    if is_dense(leaf):
        return Row(name, None, None, 0)
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name!r} has a shape but no values; call tabulate on arrays, not under "
            "jit. gradprune_jax.plan tabulates shapes."
        )
    nonzero = int(jnp.sum(is_nonzero(jnp.asarray(leaf)), dtype=jnp.uint32))
    return Row(name, np.shape(leaf), leaf.dtype, nonzero)


def _cells(row: Row) -> tuple[str, ...]:
    """The printed cells of one row."""
    path = printable(row.path)
    if row.shape is None:
        return (path, "", "", "", "", "")
    shape = "x".join(map(str, row.shape)) or "scalar"
    return (path, shape, str(row.dtype), *_numbers([row]))


def _numbers(rows: Sequence[Row]) -> tuple[str, str, str]:
    """Weights, those that are not zero, and the sparsity of rows together."""
    size = sum(row.size for row in rows)
    nonzero = sum(row.nonzero for row in rows)
    return f"{size:,}", f"{nonzero:,}", f"{100 * sparsity_of(rows):.2f} %"


def has_state(tree: Any) -> bool:
    """Whether a tree is an optimizer's state with pruning in it."""

    def is_state(node: Any) -> bool:
        return isinstance(node, GradualPruneState)

    return any(map(is_state, jax.tree.leaves(tree, is_leaf=is_state)))


def _is_mask(leaf: Any) -> bool:
    """Whether a leaf is a mask or the mark of a dense parameter."""
    return is_dense(leaf) or getattr(leaf, "dtype", None) == np.bool_
