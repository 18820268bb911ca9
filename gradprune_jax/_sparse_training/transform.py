"""The wrapper that trains an optimizer's parameters sparse from the start."""

from __future__ import annotations

from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from gradprune_jax import _tree
from gradprune_jax._checks import (
    check_fraction,
    check_sparsity,
    check_window,
)
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._rules import Rule, Where, assign
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._scores import Random
from gradprune_jax._sparse_training.drop_schedule import DropSchedule
from gradprune_jax._sparse_training.regrowth import Growth, Regrowth
from gradprune_jax._sparse_training.reset import reset_where
from gradprune_jax._state import (
    GradualPruneState,
    SparseTrainingState,
    check_state,
    mask_like,
)
from gradprune_jax._transform import (
    LeafUpdate,
    UpdateTree,
    after,
    as_arrays,
    check_given,
    forget_losses,
    of_masked_loss,
    pair_leaves,
    shards,
)


def with_sparse_training(
    inner: optax.GradientTransformation,
    sparsity: chex.Numeric,
    *,
    grow: Growth | None = "gradient",
    begin_step: int = 0,
    end_step: int | None = None,
    every: int = 100,
    drop_fraction: float = 0.3,
    seed: int = 0,
    where: Where | None = None,
    allocation: Literal["erk", "uniform"] = "erk",
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Wraps an optimizer, and trains sparse parameters from the first step on.

    Masks begin random. On an update step t, in a leaf with K live weights, the
    $n = \mathrm{round}(K f(t))$ live weights of smallest magnitude are dropped, with

    $$
    f(t) = \frac{d}{2} \Big( 1 + \cos \frac{\pi (t - t_0)}{t_1 - t_0} \Big),
    $$

    and of all that are then not kept, the dropped ones among them, the n of largest
    gradient are grown (RigL), or n at random (SET). So the number of live weights never
    changes. Grown weights begin at +0.0, and whatever the optimizer holds for weights
    that were dropped or grown begins at zero; a weight that is dropped and grown at
    once keeps its value and its state.

    The optimizer sees masked gradients, and `optax.apply_updates` leaves every weight
    that is not live at exactly +0.0. A weight of zero may be live: only the masks say
    what is pruned (`get_masks`).

    In `pmap` and `shard_map` the gradients must be averaged over the devices before
    this, as for any optimizer: by them weights are grown, and each device would grow
    others.

    Args:
      inner: the optimizer.
      sparsity: the fraction of zeros, in [0, 1]; may be a tracer.
      grow: `"gradient"` is RigL, `"random"` is SET; with None masks never change:
        static sparse training.
      begin_step: $t_0$, the first update step.
      end_step: $t_1$; update steps are before it, `every` steps apart. About three
        quarters of training; not needed if nothing grows.
      every: the steps from one update to the next.
      drop_fraction: d, the fraction of the live weights that the first update moves.
      seed: of the first masks, and of what grows at random.
      where: which parameters, see `Rule`; by default `is_weight`.
      allocation: `"erk"`, Erdos-Renyi-kernel densities, or `"uniform"`.
      partition_specs: the parameters' specs inside `jax.shard_map`.

    Returns:
      A transformation with state `SparseTrainingState`. State that is not shaped like a
      parameter (the factored moments of Adafactor, the memory of L-BFGS) is left alone
      when weights move.

    Raises:
      ValueError: if an argument is not valid.

    Examples:
      >>> import gradprune_jax as gp
      >>> tx = gp.with_sparse_training(optax.sgd(0.1), 0.75, end_step=4, every=1)
      >>> params = {"kernel": jnp.ones((4, 4))}
      >>> state = tx.init(params)
      >>> for step in range(6):
      ...     gradients = {"kernel": jax.random.normal(jax.random.key(step), (4, 4))}
      ...     updates, state = tx.update(gradients, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(gp.get_masks(state)["kernel"].sum())
      4

    References:
      Evci et al., [Rigging the lottery](https://arxiv.org/abs/1911.11134), 2020,
      algorithm 1; Mocanu et al., [Scalable training of artificial neural
      networks](https://arxiv.org/abs/1707.04780), 2018, algorithm 1.
    """
    if not hasattr(inner, "update"):
        raise ValueError(
            f"inner is {inner!r}; it must be an optax optimizer, and comes before the "
            "sparsity: with_sparse_training(optimizer, 0.9, ...)."
        )
    if allocation not in ("erk", "uniform"):
        raise ValueError(
            f"allocation is {allocation!r}; it must be 'erk' or 'uniform'."
        )
    inner = optax.with_extra_args_support(inner)
    rule = Rule(
        one_shot_schedule(check_sparsity("sparsity", sparsity), 0),
        where=where,
        allocation=allocation,
        score=Random(seed),
    )
    regrowth = _regrowth(grow, begin_step, end_step, every, drop_fraction, seed)

    def init_fn(params: optax.Params) -> SparseTrainingState:
        masks = _random_masks(rule, params, partition_specs)
        prune_state = GradualPruneState(jnp.zeros([], jnp.int32), masks)
        return SparseTrainingState(inner.init(params), prune_state, jnp.float32(0))

    def update_fn(
        updates: optax.Updates,
        state: SparseTrainingState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SparseTrainingState]:
        check_state(state, SparseTrainingState)
        params = as_arrays(params)
        step, masks = state.prune_state
        gradients = pair_leaves(updates, masks, params, [rule], partition_specs)
        updates, inner_state = inner.update(
            gradients.zero_pruned(updates),
            state.inner_state,
            params,
            **of_masked_loss(extra_args, gradients.zero_pruned),
        )
        tree = pair_leaves(updates, masks, params, [rule], partition_specs)
        moved = state.moved
        if regrowth is not None:
            tree, changed, moved = _moved(regrowth, step, gradients, tree, moved)
            inner_state = reset_where(inner, inner_state, changed)
            inner_state = forget_losses(
                inner_state, lambda: regrowth.schedule.is_update_step(step)
            )
        prune_state = GradualPruneState(optax.safe_increment(step), tree.masks())
        state = SparseTrainingState(inner_state, prune_state, moved)
        return tree.updates(), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _regrowth(
    grow: Any, begin_step: Any, end_step: Any, every: Any, drop_fraction: Any, seed: int
) -> Regrowth | None:
    """Which weights move; None if none ever does."""
    if grow is None:
        return None
    if grow not in get_args(Growth):
        raise ValueError(
            f"grow is {grow!r}; it must be one of {get_args(Growth)}, or None."
        )
    if end_step is None:
        raise ValueError(
            f"end_step is None with grow={grow!r}; give the step before which weights "
            "move, about three quarters of training."
        )
    begin_step, end_step, every = check_window(begin_step, end_step, every)
    fraction = check_fraction("drop_fraction", drop_fraction)
    return Regrowth(DropSchedule(begin_step, end_step, every, fraction), grow, seed)


def _random_masks(rule: Rule, params: optax.Params, partition_specs: Any) -> Any:
    """Masks that keep as many weights as the rule says, drawn at random."""
    check_given(params)
    leaves = _tree.named_leaves(params)
    placement = shards(params, partition_specs, may_be_whole=True)
    assigned = assign([rule], leaves, [shard.shape for shard in placement])
    own = [i for i, position in enumerate(assigned) if position is not None]
    pruned = [
        PrunedLeaf(
            leaves[i].value, mask_like(leaves[i].value), placement[i], leaves[i].name
        )
        for i in own
    ]
    masks: list[Any] = [optax.MaskedNode()] * len(leaves)
    for i, mask in zip(own, update_masks(rule, jnp.int32(0), pruned), strict=True):
        masks[i] = mask_like(leaves[i].value, mask)
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(masks)


def _moved(
    regrowth: Regrowth,
    step: jax.Array,
    gradients: UpdateTree,
    tree: UpdateTree,
    fraction: jax.Array,
) -> tuple[UpdateTree, Any, jax.Array]:
    """The leaves after a step, where their masks changed, and how many weights moved.

    Args:
      regrowth: which weights move.
      step: integer scalar.
      gradients: the leaves with their gradients.
      tree: the same leaves, with what the optimizer made of the gradients.
      fraction: what the last update moved.

    Returns:
      The leaves with new masks, whose weights begin at zero where they were grown;
      bools like the parameters, a scalar False where nothing can change; and the
      fraction.
    """
    leaves, changed = list(tree.leaves), [jnp.zeros([], bool)] * len(tree.leaves)
    own = [i for i, leaf in enumerate(leaves) if leaf.is_pruned]
    updates = [leaf.update for leaf in leaves]
    step = after(step, updates, [leaf.shard for leaf in leaves])
    masks, fraction = regrowth.at_step(
        step,
        [_pruned(regrowth, gradients.leaves[i]) for i in own],
        fraction,
    )
    for i, mask in zip(own, masks, strict=True):
        leaf = leaves[i]
        old = laid_out_like(leaf.mask, mask)
        changed[i] = old ^ mask
        # What is grown now was zero, but before the first step, and becomes zero.
        update = leaf._replace(mask=old & mask).new_update()
        leaves[i] = leaf._replace(mask=mask, update=update)
    return tree._replace(leaves=leaves), tree.treedef.unflatten(changed), fraction


def _pruned(regrowth: Regrowth, leaf: LeafUpdate) -> PrunedLeaf:
    """A leaf for a mask update, with its gradient if that is read."""
    if regrowth.grow == "gradient":
        leaf = leaf._replace(gradient=leaf.fitting("gradient", leaf.update))
    return leaf.pruned()
