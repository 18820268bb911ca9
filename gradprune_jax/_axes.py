"""Axes: what in a plan looks as if a rule meant another axis. Advice, no errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradprune_jax._structures import NM, Shape, by, slice_shape
from gradprune_jax._weights import some_of

if TYPE_CHECKING:
    from gradprune_jax._plan import LeafPlan
    from gradprune_jax._rules import Rule

# Kernels of convolutions are rarely longer in space.
_LONGEST_WINDOW = 11


def advice(rule: Rule, leaves: Sequence[LeafPlan]) -> list[str]:
    """Sentences on axes of a rule that look wrong for its leaves, most often none.

    Args:
      rule: the rule.
      leaves: the parameters that it prunes.
    """
    found = []
    if isinstance(rule.structure, NM):
        found += _on_groups(rule, rule.structure, leaves)
    if rule.stack_axis is not None:
        found += _on_slices(rule.stack_axis, leaves)
    return found


def _on_groups(rule: Rule, pattern: NM, leaves: Sequence[LeafPlan]) -> list[str]:
    """Groups of N:M along what may be heads or layers."""
    odd = [
        leaf
        for leaf in leaves
        if _looks_like_no_inputs(slice_shape(leaf.shape, rule.stack_axis), pattern.axis)
    ]
    if not odd:
        return []
    return [
        f"groups along axis {pattern.axis} of {_shown(odd)} may lie across heads or "
        "layers. Compare the shape with the layer's sizes: groups belong on the axis "
        "of its inputs, -3 in kernels (inputs, heads, features), and stack_axis names "
        "that of layers."
    ]


def _looks_like_no_inputs(shape: Shape, axis: int) -> bool:
    """Whether an axis is too short for the inputs of a kernel of three axes or more.

    Inputs are the longer of two neighbours in (heads, features, outputs), (window,
    inputs, outputs) and (layers, inputs, outputs), and heads are the shorter in
    (inputs, heads, features).
    """
    if len(shape) < 3:
        return False
    axis_from_front = axis % len(shape)
    if axis_from_front == 0:
        return shape[0] <= min(shape[1:])
    window = shape[axis_from_front + 1 :]
    # (outputs, inputs, height, width), written with its axis from the front.
    if axis == 1 and window and max(window) <= _LONGEST_WINDOW:
        return False
    return shape[axis_from_front] <= shape[axis_from_front - 1]


def _on_slices(stack_axis: int, leaves: Sequence[LeafPlan]) -> list[str]:
    """Slices of leaves that do not look stacked."""
    advised = "Use one rule with stack_axis for stacked parameters and one for others."
    found = []
    flat = [leaf for leaf in leaves if len(leaf.shape) <= 2]
    if flat:
        found.append(
            f"stack_axis={stack_axis} applies to {_shown(flat)} too, whose slices are "
            f"single rows, each with a threshold of its own. {advised}"
        )
    first_of: dict[int, LeafPlan] = {}
    for leaf in leaves:
        if len(leaf.shape) > 2:
            first_of.setdefault(leaf.shape[stack_axis], leaf)
    if len(first_of) > 1:
        found.append(
            f"stack_axis={stack_axis} makes different numbers of slices: "
            f"{_shown(list(first_of.values()))}. {advised}"
        )
    return found


def _shown(leaves: Sequence[LeafPlan]) -> str:
    """The first leaves by path and shape."""
    return some_of([f"{leaf.path} ({by(leaf.shape)})" for leaf in leaves])
