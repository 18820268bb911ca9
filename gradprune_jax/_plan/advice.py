"""Advice: axes of a rule that look wrong for its leaves. Sentences, not errors."""

from __future__ import annotations

from collections.abc import Sequence

from gradprune_jax._checks import may_be_nonzero
from gradprune_jax._geometry import slice_shape
from gradprune_jax._plan.leaf import LeafPlan
from gradprune_jax._rules import Rule, last_name
from gradprune_jax._structures import NM, Channel, Shape
from gradprune_jax._tables import by, first_of

# Kernels of convolutions are rarely longer in space.
_LONGEST_WINDOW = 11
# Names that Equinox and PyTorch give to kernels whose outputs come first.
_OUTPUTS_FIRST = frozenset({"weight", "weight_ih", "weight_hh"})


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
    return found + _on_outputs_first(rule, leaves)


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
    return shape[axis_from_front] < shape[axis_from_front - 1]


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
    long = [leaf for leaf in leaves if _looks_stacked_elsewhere(leaf.shape, stack_axis)]
    if long:
        shortest = long[0].shape.index(min(long[0].shape))
        found.append(
            f"stack_axis={stack_axis} is not the shortest axis of {_shown(long)}, and "
            "layers are rarely more than inputs or outputs. If they lie along axis "
            f"{shortest}, set stack_axis={shortest}."
        )
    of_length: dict[int, LeafPlan] = {}
    for leaf in leaves:
        if len(leaf.shape) > 2:
            of_length.setdefault(leaf.shape[stack_axis], leaf)
    if len(of_length) > 1:
        found.append(
            f"stack_axis={stack_axis} makes different numbers of slices: "
            f"{_shown(list(of_length.values()))}. {advised}"
        )
    return found


def _looks_stacked_elsewhere(shape: Shape, stack_axis: int) -> bool:
    """Whether a stack of matrices has more layers than inputs or outputs.

    With more axes the shortest may be heads.
    """
    return len(shape) == 3 and shape[stack_axis] > min(shape)


def _on_outputs_first(rule: Rule, leaves: Sequence[LeafPlan]) -> list[str]:
    """Default axes, those of (inputs, outputs), on kernels (outputs, inputs)."""
    settings = []
    match rule.structure:
        case NM(axis=-2):
            settings.append("axis=1 in NM")
        case Channel(axis=-1):
            settings.append("axis=0 in Channel")
    least = rule.min_per_channel
    if rule.output_axis is None and may_be_nonzero(least):
        settings.append("output_axis=0")
    turned = [
        leaf
        for leaf in leaves
        if last_name(leaf.path) in _OUTPUTS_FIRST
        and len(slice_shape(leaf.shape, rule.stack_axis)) == 2
    ]
    if not settings or not turned:
        return []
    return [
        f"the default axes are those of (inputs, outputs), and {_shown(turned)} may be "
        "(outputs, inputs), as in Equinox and PyTorch: then set "
        f"{' and '.join(settings)}."
    ]


def _shown(leaves: Sequence[LeafPlan]) -> str:
    """The first leaves by path and shape."""
    return first_of([f"{leaf.path!r} ({by(leaf.shape)})" for leaf in leaves])
