"""Masks that stay as they are: training of a model that is sparse already."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax._masks import pair_with_masks
from gradprune_jax._state import (
    GradualPruneState,
    check_state,
    is_dense,
    mask_like,
    masks_by_leaf,
)
from gradprune_jax._transform.absent import check_given, without_absent
from gradprune_jax._transform.zeroing import map_pruned, zero_pruned


def keep_masks(masks: Any) -> optax.GradientTransformationExtraArgs:
    r"""Holds given masks fixed: the last link of an optax chain.

    $$
    u' = \begin{cases} u & m \\ -p & \text{otherwise,} \end{cases}
    $$

    so that `optax.apply_updates` leaves every pruned weight at exactly +0.0. For a
    lottery ticket, or a model that was pruned before.

    Args:
      masks: a tree like the parameters': bool arrays, True where a weight is kept, and
        `optax.MaskedNode()` where a leaf stays dense, as `prune`,
        `get_masks` and `masks_from_params` return them.

    Returns:
      A transformation with state `GradualPruneState`, whose masks never change.
      `init` raises ValueError if the masks do not fit the parameters.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 1.0]])}
      >>> tx = optax.chain(optax.sgd(0.1), gp.keep_masks(gp.masks_from_params(params)))
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(optax.apply_updates(params, updates)["kernel"])
      [[1.8 0. ]
       [0.  0.9]]

    References:
      Frankle and Carbin, [The lottery ticket
      hypothesis](https://arxiv.org/abs/1803.03635), 2019.
    """

    def init_fn(params: optax.Params) -> GradualPruneState:
        check_given(params)
        count = jnp.zeros([], jnp.int32)
        treedef: Any = jax.tree.structure(params)
        if not treedef.num_leaves:  # optax.tree.map_params calls init so
            return GradualPruneState(count, params)
        kept = [
            mask if is_dense(mask) else mask_like(leaf, mask)
            for _, leaf, mask in pair_with_masks(params, masks)
        ]
        return GradualPruneState(count, treedef.unflatten(kept))

    def update_fn(
        updates: optax.Updates,
        state: GradualPruneState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradualPruneState]:
        del extra_args
        check_state(state, GradualPruneState)
        params, own = without_absent(updates, params, state.masks)
        treedef = jax.tree.structure(params)
        updates = map_pruned(
            zero_pruned, treedef, masks_by_leaf(own, params), params, updates
        )
        return updates, state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
