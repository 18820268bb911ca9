"""View steps: casts, reshapes, transposes and slices, as what they make of a view."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from gradprune_jax._calibration.views import View
from gradprune_jax._program import Step

# Steps that leave their one operand as it is.
_UNCHANGED = frozenset(
    {"copy", "name", "sharding_constraint", "reshard", "mesh_cast", "pvary"}
)


def views_after(
    step: Step, seen: Sequence[View | None], types: Sequence[Any]
) -> Sequence[View | None] | None:
    """The views that a step makes of views.

    Args:
      step: the operation.
      seen: the view that each operand is; None for one that is none.
      types: of all variables.

    Returns:
      The view that each result is; None if the step does more than that.
    """
    name, params = step.primitive.name, step.params
    if name == "optimization_barrier":
        return seen
    view = seen[0]
    if len(seen) != 1 or view is None:
        return None
    shape = types[step.results[0]].shape
    found: Sequence[View | None]
    match name:
        case "convert_element_type" if _is_floating(params["new_dtype"]):
            found = [view.cast(params["new_dtype"])]
        case "reshape" if params["dimensions"] is None:
            found = [view.reshaped(shape)]
        case "squeeze":
            found = [view.reshaped(shape)]
        case "broadcast_in_dim" if _is_order_kept(view.shape, shape):
            found = [view.reshaped(shape)]
        case "transpose":
            found = [view.transposed(params["permutation"])]
        case "slice" if set(params["strides"] or (1,)) == {1}:
            found = [_sliced(view, params["start_indices"], params["limit_indices"])]
        case "split":
            stops = itertools.accumulate(params["sizes"])
            found = [
                view.sliced(params["axis"], stop - size, stop)
                for size, stop in zip(params["sizes"], stops, strict=True)
            ]
        case _ if name in _UNCHANGED:
            found = [view]
        case _:
            return None
    return None if None in found else found


def _sliced(view: View, starts: Sequence[int], stops: Sequence[int]) -> View | None:
    """A slice of a view; None if it is no part of equal parts."""
    sliced: View | None = view
    for axis, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if sliced is not None and (start, stop) != (0, view.shape[axis]):
            sliced = sliced.sliced(axis, start, stop)
    return sliced


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _is_order_kept(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a broadcast only adds axes of one element."""
    return [n for n in before if n != 1] == [n for n in after if n != 1]
