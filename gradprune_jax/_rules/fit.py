"""Fit: whether a rule can prune a leaf, by its dtype and shape."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from gradprune_jax._checks import is_traced
from gradprune_jax._geometry import block_shape, leaf_block, output_axis, slice_shape
from gradprune_jax._rules.rule import Rule
from gradprune_jax._structures import (
    NM,
    Block,
    Channel,
    CoupledChannels,
    Shape,
    Unstructured,
)


def check_prunable(name: str, dtype: Any, shape: Shape, rule: Rule) -> None:
    """Refuses a leaf that its rule cannot prune.

    Args:
      name: the leaf.
      dtype: its dtype.
      shape: the shape of the whole leaf.
      rule: its rule.

    Raises:
      ValueError: if its dtype has no prunable numbers, it lacks an axis, or the rule's
        structure does not fit it.
    """
    _check_dtype(name, dtype, rule)
    if isinstance(rule.structure, CoupledChannels):
        found = rule.structure.shapes[name]
        if found != shape:
            raise ValueError(
                f"{name!r} has shape {shape}, and {found} where its channel groups "
                "were found; call channel_groups with the parameters that are pruned."
            )
        return
    axis = rule.stack_axis
    if axis is not None and not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{name!r} has shape {shape}, without the stack axis {axis}; narrow "
            f"the rule ({rule}) to stacked parameters."
        )
    try:
        leaf_block(rule.structure or Unstructured(), shape, axis)
    except ValueError as error:
        raise ValueError(
            f"{name!r} has shape {shape}, which {rule.structure!r} of its rule "
            f"({rule}) does not fit: {error}."
        ) from None
    if not is_traced(rule.min_per_channel) and rule.min_per_channel > 0:
        _check_channels(name, slice_shape(shape, axis), rule)


def _check_dtype(name: str, dtype: Any, rule: Rule) -> None:
    """Refuses a dtype that is not floating, has no zero, or that JAX does not have."""
    reason = None
    if not jnp.issubdtype(dtype, jnp.floating):
        reason = "is not a floating dtype"
    elif dtype == jnp.float8_e8m0fnu:
        reason = "has no zero"
    elif jnp.finfo(dtype).bits < 8:
        reason = "has fewer than 8 bits"
    elif jnp.finfo(dtype).bits > 64:
        reason = "has more than 64 bits"
    if reason is not None:
        raise ValueError(
            f"{name!r} has dtype {dtype}, which {reason} and cannot be pruned; "
            f"narrow the rule ({rule}) so that it does not match it."
        )


def _check_channels(name: str, shape: Shape, rule: Rule) -> None:
    """Refuses a structure with which min_per_channel cannot hold or be counted.

    Args:
      name: the leaf.
      shape: its shape; of a stacked leaf, that of a slice.
      rule: its rule, with a min_per_channel that is known and not 0.
    """
    wanted = f"min_per_channel={rule.min_per_channel} of its rule ({rule})"
    given = -1 if rule.output_axis is None else rule.output_axis
    if not -len(shape) <= given < len(shape):
        raise ValueError(
            f"{name!r} has the axes {shape}, without the output axis {given} of "
            f"{wanted}; narrow the rule, or set output_axis."
        )
    axis = output_axis(rule.output_axis, len(shape))
    match rule.structure:
        case Channel(axis=channels) if channels % len(shape) == axis:
            raise ValueError(
                f"{name!r} is pruned by {rule.structure!r}, which drops whole output "
                f"channels, against {wanted}; leave one of the two out."
            )
        case NM(axis=groups) if groups % len(shape) == axis:
            raise ValueError(
                f"{name!r} is pruned by {rule.structure!r}, whose groups lie along the "
                f"output axis {axis}, so nothing holds {wanted}; put the groups along "
                "the axis of inputs, or set output_axis."
            )
        case NM(keep=keep, of=of):
            weights = math.prod(shape) // max(shape[axis], 1)
            kept = weights // of * keep
            if kept < min(rule.min_per_channel, weights):
                raise ValueError(
                    f"{name!r} keeps {kept} weights of each output channel by "
                    f"{rule.structure!r}, fewer than {wanted}; lower min_per_channel "
                    f"to {kept}, or narrow the rule."
                )
        case Block():
            block = block_shape(rule.structure, shape)
            for other, (size, length) in enumerate(zip(shape, block, strict=True)):
                if other != axis and size % length:
                    raise ValueError(
                        f"{name!r} has the axes {shape}, and the blocks of "
                        f"{rule.structure!r} are cut short on axis {other}, so they "
                        f"cannot be counted against {wanted}; choose blocks whose "
                        f"length there divides {size}."
                    )
