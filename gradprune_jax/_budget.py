"""Budgets: how many non-zeros or bytes a model may have, and the sparsity that fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from gradprune_jax._checks import check_integer

# The bytes of an index, as in SciPy, cuSPARSE and jax.experimental.sparse.
INDEX_BYTES = 4

_SPARSE_LAYOUTS = ("bitmask", "csr", "coo")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a pruned model may have: non-zeros, or bytes in a sparse layout.

    All floating parameters count. Those that stay dense count with all of their
    weights, and in bytes each parameter is stored dense where that is smaller, as
    `export.storage_report` adds up.

    Attributes:
      nonzeros: how many weights may be kept.
      nbytes: how many bytes they may take; give this or `nonzeros`.
      layout: of what is stored sparse: `"bitmask"` (of `export.save_sparse`), `"csr"`
        or `"coo"`.

    Raises:
      ValueError: if a field is not valid, or not exactly one of both is given.

    Examples:
      >>> print(Budget(1_000_000))
      1,000,000 non-zeros
      >>> print(Budget(nbytes=5_000_000, layout="csr"))
      5,000,000 bytes as csr
    """

    nonzeros: int | None = None
    nbytes: int | None = None
    layout: str = "bitmask"

    def __post_init__(self) -> None:
        if (self.nonzeros is None) == (self.nbytes is None):
            raise ValueError(
                f"nonzeros is {self.nonzeros} and nbytes is {self.nbytes}; give one of "
                "them."
            )
        name = "nonzeros" if self.nbytes is None else "nbytes"
        object.__setattr__(self, name, check_integer(name, self.most, 0, most=2**63))
        if self.layout not in _SPARSE_LAYOUTS:
            raise ValueError(
                f"layout is {self.layout!r}; it must be one of {_SPARSE_LAYOUTS}, "
                "whose bytes depend on the sparsity."
            )

    @property
    def most(self) -> int:
        """The number that must not be exceeded."""
        return self.nonzeros if self.nbytes is None else self.nbytes  # type: ignore

    def cost(self, shape: tuple[int, ...], itemsize: int, kept: int) -> int:
        """What a parameter costs: its non-zeros, or its bytes.

        Args:
          shape: of the parameter.
          itemsize: the bytes of a weight.
          kept: how many of its weights are kept.
        """
        if self.nbytes is None:
            return kept
        dense = math.prod(shape) * itemsize
        return min(dense, layout_nbytes(self.layout, shape, itemsize, kept))

    def __str__(self) -> str:
        if self.nbytes is None:
            return f"{self.nonzeros:,} non-zeros"
        return f"{self.nbytes:,} bytes as {self.layout}"


def as_budget(budget: int | Budget) -> Budget:
    """The budget; a number is one of non-zeros."""
    return budget if isinstance(budget, Budget) else Budget(budget)


def layout_nbytes(
    layout: str, shape: tuple[int, ...], itemsize: int, nonzero: int
) -> int:
    """The bytes of an array in a sparse layout; all axes but the last are rows.

    Args:
      layout: `"bitmask"`, `"csr"` or `"coo"`.
      shape: of the array.
      itemsize: the bytes of an element.
      nonzero: how many elements are stored.

    Examples:
      >>> layout_nbytes("csr", (64, 64), 4, 512)
      4356
    """
    *rows, columns = shape or (1,)
    values, count = nonzero * itemsize, math.prod(rows)
    if layout == "bitmask":
        return values + count * -(-columns // 8) + 8 * (count + len(shape or (1,)))
    if layout == "csr":
        return values + nonzero * INDEX_BYTES + (count + 1) * INDEX_BYTES
    return values + nonzero * INDEX_BYTES * len(shape or (1,))


def smallest_sparsity(
    cost_at: Callable[[float], int], budget: Budget, least: float, dense: Iterable[str]
) -> float:
    r"""The smallest float32 sparsity $s$ with $\mathrm{cost}(s)$ within the budget.

    Args:
      cost_at: what the model costs at a sparsity; it never rises with it.
      budget: what it may cost.
      least: the sparsity below which not to search.
      dense: the names of parameters that stay dense, for the error.

    Raises:
      ValueError: if the model does not fit even at sparsity 1.

    Examples:
      >>> smallest_sparsity(lambda s: 100 - round(100 * s), Budget(25), 0.0, [])
      0.7450000047683716
    """
    if cost_at(1.0) > budget.most:
        names = list(dense)
        some = f"; dense stay {', '.join(names[:3])}" if names else ""
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"budget is {budget}, but with all that rules prune removed the model "
            f"still has {cost_at(1.0):,}{some}{more}. Raise it, or prune more "
            "parameters."
        )
    if cost_at(least) <= budget.most:
        return least
    # The bits of floats that are not negative are in the order of the floats.
    low, high = (int(np.float32(s).view(np.uint32)) for s in (least, 1.0))
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost_at(float(np.uint32(middle).view(np.float32))) <= budget.most
        low, high = (low, middle) if fits else (middle, high)
    return float(np.uint32(high).view(np.float32))
