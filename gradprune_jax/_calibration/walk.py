"""The walk: all batches go through a function together, weight by weight."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._calibration.evaluation import Evaluation, Statistic, Stop
from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.reads import find_reads
from gradprune_jax._calibration.views import Axes
from gradprune_jax._calibration.weights import Weights
from gradprune_jax._checks import is_traced
from gradprune_jax._program import Trace, trace
from gradprune_jax._tables import track


class Visit(NamedTuple):
    """A weight, when all batches have reached it.

    Attributes:
      product: the product that reads it.
      axes: the axes along which a method sees it.
      turns: those of the loops around it.
      statistic: the sum of those of all batches.
    """

    product: Product
    axes: Axes
    turns: tuple[int, ...]
    statistic: jax.Array

    @property
    def place(self) -> tuple[Product, Axes, tuple[int, ...]]:
        """What tells the weight from all others."""
        return self.product, self.axes, self.turns


@dataclasses.dataclass(frozen=True)
class Walk:
    """What is done at every weight.

    Attributes:
      weights: where they are read from, each once its visit is over.
      selected: their names, by their positions among the leaves.
      statistic: from float32 rows of inputs, [groups, samples, inputs], to an array
        that is summed over batches.
      axes_of: the axes along which a method sees the weights of a product.
    """

    weights: Weights
    selected: Mapping[int, str]
    statistic: Statistic
    axes_of: Callable[[Product], Axes]

    def visits(
        self,
        fn: Callable[..., Any],
        params: Any,
        batches: Sequence[Any],
        progress: bool,
    ) -> Iterator[Visit]:
        """Runs a function on all batches, and stops at each weight that it reads.

        Args:
          fn: maps parameters and a batch to outputs.
          params: its parameters.
          batches: the batches.
          progress: whether to show a progress bar.

        Yields:
          One visit a weight and layer, in the order of the function.
        """
        evaluations: dict[Any, Evaluation] = {}
        runs, orders = [], []
        leaves = jax.tree.leaves(params)
        for batch in batches:
            inputs, treedef = jax.tree.flatten(batch)
            key = (treedef, tuple(map(jax.typeof, inputs)))
            if key not in evaluations:
                traced = _traced(fn, params, batch)
                reads = find_reads(traced, self.selected)
                orders.append(list(reads.places(traced.program)))
                evaluations[key] = Evaluation(
                    traced, reads, self._of_rows, self.axes_of, self.weights.value
                )
            runs.append(evaluations[key].stops([*leaves, *inputs]))
        if any(order != orders[0] for order in orders):
            raise ValueError(
                "fn reads its parameters in another order, or along other axes, for "
                "batches of other shapes; give batches of one shape."
            )
        for place in track(orders[0], "calibration", shown=progress):
            stop, total = _next_stop(runs)
            if not bool(jnp.isfinite(total).all()):
                raise ValueError(
                    f"the inputs of {self.selected[place.leaf]!r} are not finite, or "
                    "their squares are too large for float32."
                )
            yield Visit(stop.product, self.axes_of(stop.product), stop.turns, total)

    def _of_rows(self, rows: jax.Array) -> jax.Array:
        """The statistic of the rows of one batch."""
        if not rows.shape[1]:
            raise ValueError(
                "a batch has no samples, or images that are smaller than a kernel; "
                "leave it out."
            )
        return self.statistic(rows.astype(jnp.float32))


def as_batches(batches: Iterable[Any], name: str) -> list[Any]:
    """A user's batches as a list of trees of arrays.

    Args:
      batches: what the user gave.
      name: of the function that takes them.
    """
    if hasattr(batches, "shape") or isinstance(batches, dict | str):
        raise ValueError(
            f"batches is one {type(batches).__name__}; give a list of batches, each of "
            "them what fn takes beside the parameters: [batch]."
        )
    try:
        found = list(batches)
    except TypeError:
        raise ValueError(
            f"batches is {batches!r}; it must be a list of batches."
        ) from None
    if not found:
        raise ValueError("batches is empty; at least one batch is needed.")
    for number, batch in enumerate(found):
        for leaf in jax.tree.leaves(batch):
            if is_traced(leaf):
                raise ValueError(f"batch {number} is traced; call {name} outside jit.")
            if isinstance(leaf, jax.ShapeDtypeStruct | str):
                raise ValueError(
                    f"batch {number} has {leaf!r}, which is no array; give numbers."
                )
    return [jax.tree.map(jnp.asarray, batch) for batch in found]


def _takes_several(fn: Callable[..., Any], batch: Any) -> bool:
    """Whether a tuple is several inputs of a function, which can't take it as one."""
    if not isinstance(batch, tuple):
        return False
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some functions of C have none
        return False
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # fn(params, *inputs)
        return type(batch) is tuple
    try:
        signature.bind(None, batch)
    except TypeError:
        return True
    return False


def _traced(fn: Callable[..., Any], params: Any, batch: Any) -> Trace:
    """The function as a program, refused if it is known in an outer one alone."""
    if not callable(fn):
        raise ValueError(
            f"fn is {fn!r}; it must be a function of the parameters and one batch."
        )
    traced = trace(fn, params, batch if _takes_several(fn, batch) else (batch,))
    if any(is_traced(value) for _, value in traced.program.constants):
        raise ValueError("fn closes over a traced value; call this outside jit.")
    return traced


def _next_stop(runs: Sequence[Iterator[Stop]]) -> tuple[Stop, jax.Array]:
    """Runs every batch up to the next weight, and adds up what is known of inputs."""
    first, total = None, None
    for run in runs:
        stop = next(run)
        first = first or stop
        total = stop.statistic if total is None else total + stop.statistic
    assert first is not None
    assert total is not None
    return first, total
