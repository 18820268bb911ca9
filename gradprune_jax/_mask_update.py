"""Mask update: the new masks of one rule, from its weights, masks and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from gradprune_jax import _allocation as allocation
from gradprune_jax import _arithmetic as arithmetic
from gradprune_jax import _selection as selection
from gradprune_jax._checks import is_traced
from gradprune_jax._counting import Units
from gradprune_jax._rules import Rule
from gradprune_jax._shards import Shard
from gradprune_jax._structures import Unstructured, ranking_dtype


def update_masks(
    rule: Rule,
    sparsity: jax.Array,
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    shards: Sequence[Shard],
) -> list[jax.Array]:
    r"""Prunes the units of smallest magnitude until the rule's sparsity is reached.

    .. math:: m' = m \wedge \mathrm{top}_k(|m \odot w|)

    A mask never grows: what was pruned ranks as zero, and is never kept again.

    Args:
      rule: the rule.
      sparsity: float32 scalar, the rule's sparsity at this step.
      weights: its leaves, in the order of the tree.
      masks: their masks, bool.
      shards: where the leaves lie in whole arrays, inside `shard_map`.

    Returns:
      The new masks, bool.
    """
    units = _units(rule, weights, masks, shards)
    sizes = [leaf.slice_size for leaf in units for _ in range(leaf.slices)]
    budget = allocation.allocate(rule.allocation, sizes, sparsity)
    kept = budget.kept
    if budget.together and _may_be_nonzero(rule.min_density):
        least = allocation.floors(rule.min_density, sizes)
        protected = selection.top_k(units, least)
        units = [
            leaf._replace(first=first)
            for leaf, first in zip(units, protected, strict=True)
        ]
        kept = arithmetic.maximum(kept, arithmetic.total(least))
    selected = selection.top_k(units, kept, together=budget.together)
    return [
        mask & leaf.structure.expand(kept_units, leaf.weights.shape)
        for mask, leaf, kept_units in zip(masks, units, selected, strict=True)
    ]


def _units(
    rule: Rule,
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    shards: Sequence[Shard],
) -> list[Units]:
    """The units of the rule's leaves; one dtype for all that are ranked together."""
    structure = rule.structure or Unstructured()
    dtypes = [ranking_dtype(leaf.dtype) for leaf in weights]
    if rule.allocation == "global":
        dtypes = [ranking_dtype(*dtypes)] * len(dtypes)
    return [
        Units.of_leaf(
            leaf,
            mask,
            structure=structure,
            dtype=dtype,
            stack_axis=None if rule.stack_axis is None else rule.stack_axis % leaf.ndim,
            shard=shard,
        )
        for leaf, mask, dtype, shard in zip(weights, masks, dtypes, shards, strict=True)
    ]


def _may_be_nonzero(number: Any) -> bool:
    """False only for a number known now to be zero."""
    return is_traced(number) or bool(number != 0)
