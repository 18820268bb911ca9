"""N:M: the largest weights of every group of neighbours.

A weight is kept if fewer than N of its group come before it. Each is compared with all
of its group, so nothing is sorted or moved, and groups know nothing of each other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._mask_update.blocks import BlockedLeaf
from gradprune_jax._mask_update.leaf import weight_keys
from gradprune_jax._rules import Rule
from gradprune_jax._structures import NM
from gradprune_jax._top_k import (
    LONGEST_RUN,
    ranking_dtype,
    split_axis,
)


def select_in_groups(
    rule: Rule, pattern: NM, step: jax.Array, leaves: Sequence[BlockedLeaf]
) -> list[jax.Array]:
    """Marks the largest live weights of every group of N:M."""
    schedule: Any = rule.schedule
    final = jnp.asarray(schedule.final_sparsity, jnp.float32)
    kept = group_kept(pattern, schedule.sparsity(step), final)
    return [
        largest_in_groups(
            weight_keys(
                leaf.numbers,
                leaf.mask,
                ranking_dtype(leaf.numbers.dtype),
                signed=leaf.signed,
            ),
            leaf.block.index(pattern.of),
            pattern.of,
            kept,
        )
        for leaf in leaves
    ]


def group_kept(
    structure: NM, sparsity: jax.Array, final_sparsity: jax.Array
) -> jax.Array:
    r"""How many weights each group keeps when a schedule stands at a sparsity.

    $$
    M - \lfloor (M - N) s / s_f \rfloor = M - \lfloor M s \rfloor
    $$

    for the pattern's own $s_f = 1 - N / M$. No product is rounded, by which many a
    pattern would end one too high: the sparsity is compared with each $i / M$, and both
    are the nearest float32.

    Args:
      structure: the pattern, N of M.
      sparsity: float32, s.
      final_sparsity: float32 scalar, $s_f$ as the schedule has it.

    Returns:
      int32, N wherever s is at least $s_f$.

    Examples:
      >>> sparsities = jnp.array([0.0, 0.3, 0.5])
      >>> print(group_kept(NM(2, 4), sparsities, sparsities[-1]))
      [4 3 2]
    """
    pruned = structure.of - structure.keep
    steps = (np.arange(1, pruned + 1) / structure.of).astype(np.float32)
    steps = steps.reshape(*[1] * sparsity.ndim, pruned)
    so_far = jnp.sum(jnp.expand_dims(sparsity, -1) >= steps, -1, dtype=jnp.int32)
    return structure.of - jnp.where(sparsity >= final_sparsity, pruned, so_far)


@functools.partial(jax.jit, static_argnums=(1, 2))
def largest_in_groups(
    keys: jax.Array, axis: int, of: int, kept: jax.Array
) -> jax.Array:
    """Marks the `kept` largest keys of every group, of equal ones the first.

    Args:
      keys: unsigned integers.
      axis: the axis along which neighbours form groups.
      of: the length of a group, which divides that axis.
      kept: int32 scalar.

    Returns:
      bool of the shape of `keys`.
    """
    shape = keys.shape
    grouped = split_axis(keys, axis, of)
    mine = jnp.expand_dims(grouped, axis + 2)
    position = jnp.arange(of)
    rank = jnp.zeros_like(grouped, dtype=jnp.int32)
    for start in range(0, of, LONGEST_RUN):  # what XLA sums without writing it first
        others = jax.lax.slice_in_dim(
            grouped, start, min(start + LONGEST_RUN, of), axis=axis + 1
        )
        other = jnp.expand_dims(others, axis + 1)
        earlier = position[None, start : start + LONGEST_RUN] < position[:, None]
        earlier = earlier.reshape(*earlier.shape, *[1] * (len(shape) - axis - 1))
        before = jnp.where(earlier, other >= mine, other > mine)
        rank += jnp.sum(before, axis=axis + 2, dtype=jnp.int32)
    return (rank < kept).reshape(shape)
