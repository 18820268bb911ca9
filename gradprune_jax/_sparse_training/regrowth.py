"""Regrowth: the smallest live weights of every leaf go, and as many others come."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._in_place import update_if
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._mask_update import (
    PrunedLeaf,
    rounded_product,
    with_masks,
    without_masks,
)
from gradprune_jax._scores import uniform
from gradprune_jax._sparse_training.drop_schedule import DropSchedule
from gradprune_jax._top_k import Count, Units, ranking_dtype, ranking_keys, top_k

Growth = Literal["gradient", "random"]


class Moved(NamedTuple):
    """What a step makes of the masks.

    Attributes:
      masks: the new ones, bool, one a leaf.
      fraction: the fraction of the live weights that the last update grew, float32.
    """

    masks: list[jax.Array]
    fraction: jax.Array


@dataclasses.dataclass(frozen=True)
class Regrowth:
    """Which weights move. Hashable.

    Attributes:
      schedule: when, and how many.
      grow: by what weights are grown, their gradient or a random number.
      seed: of the random numbers.
    """

    schedule: DropSchedule
    grow: Growth
    seed: int

    def at_step(
        self, step: jax.Array, leaves: Sequence[PrunedLeaf], fraction: jax.Array
    ) -> Moved:
        """The masks after a step: new ones if it is an update step, else the old.

        Args:
          step: integer scalar.
          leaves: the leaves, with their gradients if weights are grown by them.
          fraction: what the last update moved.
        """
        # Compiled outside jit too, where a loop would be compiled at every step.
        return _moved_if_due(self, step, leaves, fraction)

    def drop_and_grow(self, step: jax.Array, leaves: Sequence[PrunedLeaf]) -> Moved:
        r"""Drops the n smallest live weights of every leaf, and grows n others.

        $$
        n = \mathrm{round}(K f(t)), \qquad
        m_1 = m \wedge \mathrm{top}_{K - n}(m, |w|), \qquad
        m' = m_1 \vee \mathrm{top}_n(\neg m_1, s)
        $$

        with K the live weights of the leaf, and s the magnitude of the gradient, or
        random. A weight that was just dropped may be grown at once.
        """
        # One loop that is run twice would compile more slowly: it has both arrays.
        live = _count([leaf.mask for leaf in leaves], leaves)
        moved = rounded_product(live, self.schedule.fraction(step))
        largest = top_k([_units(leaf, leaf.weights) for leaf in leaves], live - moved)
        stay = [
            leaf.mask & chosen for leaf, chosen in zip(leaves, largest, strict=True)
        ]
        dropped = [
            dataclasses.replace(leaf, mask=~own)
            for leaf, own in zip(leaves, stay, strict=True)
        ]
        grown = top_k(
            [_units(leaf, self._scores(step, leaf)) for leaf in dropped], moved
        )
        masks = [
            own | (leaf.mask & chosen)
            for own, leaf, chosen in zip(stay, dropped, grown, strict=True)
        ]
        new = [mask & ~leaf.mask for mask, leaf in zip(masks, leaves, strict=True)]
        return Moved(masks, _total(_count(new, leaves)) / jnp.maximum(_total(live), 1))

    def _scores(self, step: jax.Array, leaf: PrunedLeaf) -> jax.Array:
        """By what the leaf's weights are grown: not negative, or ranked so."""
        if self.grow == "gradient":
            return leaf.gradient
        turn = step.astype(jnp.uint32) + 1  # the first masks were drawn in turn 0
        return uniform(self.seed, leaf.name, leaf.flat_index(), turn)


@functools.partial(jax.jit, static_argnums=0)
def _moved_if_due(
    regrowth: Regrowth,
    step: jax.Array,
    leaves: Sequence[PrunedLeaf],
    fraction: jax.Array,
) -> Moved:
    def update(moved: Moved, inputs: Any) -> Moved:
        step, leaves = inputs
        return regrowth.drop_and_grow(step, with_masks(leaves, moved.masks))

    return update_if(
        regrowth.schedule.is_update_step(step),
        update,
        Moved([laid_out_like(leaf.mask, leaf.weights) for leaf in leaves], fraction),
        (step, without_masks(leaves)),
    )


def _units(leaf: PrunedLeaf, numbers: jax.Array) -> Units:
    """The weights of a leaf where its mask is True, ranked by magnitudes."""
    return Units(
        (numbers, leaf.mask),
        first=None,
        make_keys=ranking_keys,
        dtype=ranking_dtype(numbers.dtype),
        slice_axes=(),
        shard=leaf.shard,
    )


def _count(masks: Sequence[jax.Array], leaves: Sequence[PrunedLeaf]) -> Count:
    """How many weights of each whole leaf are marked: [leaves]."""
    counts = []
    for mask, leaf in zip(masks, leaves, strict=True):
        count = jnp.sum(mask, dtype=jnp.uint32)
        names = leaf.shard.split_axes
        counts.append(jax.lax.psum(count, names) if names else count)
    return Count.of_uint32(jnp.stack(counts))


def _total(counts: Count) -> jax.Array:
    """The sum of counts, float32."""
    return jnp.sum(counts.as_float())
