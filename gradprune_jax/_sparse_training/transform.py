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
    check_known,
    check_sparsity,
    check_window,
    is_traced,
)
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._mask_update import PrunedLeaf, masks_at_step, update_masks
from gradprune_jax._rules import Rule, Where, assign, warn_of_dense_weights
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
    score = Random(seed)
    rule = Rule(
        one_shot_schedule(check_sparsity("sparsity", sparsity), 0),
        where=where,
        allocation=allocation,
        score=score,
    )
    regrowth = _regrowth(grow, begin_step, end_step, every, drop_fraction, score.seed)

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
        tree = gradients.with_updates(updates)
        count, moved = optax.safe_increment(step), state.moved
        if regrowth is not None and any(leaf.is_pruned for leaf in tree.leaves):
            gradients, moved = _with_new_masks(regrowth, step, gradients, tree, moved)
            tree, changed = _that_stay(tree, gradients, params)
            is_due = regrowth.schedule.is_update_step(step)
            inner_state = reset_where(inner_state, changed, is_due)
            inner_state = forget_losses(inner_state, lambda: is_due)
        prune_state = GradualPruneState(count, gradients.masks())
        return tree.updates(), SparseTrainingState(inner_state, prune_state, moved)

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
    numbers = {
        "begin_step": begin_step,
        "end_step": end_step,
        "every": every,
        "drop_fraction": drop_fraction,
    }
    for name, value in numbers.items():
        check_known(name, value)
    begin_step, end_step, every = check_window(begin_step, end_step, every)
    if end_step == begin_step:
        raise ValueError(
            f"end_step is {end_step}, and so is begin_step: no weight would ever move. "
            "Give a later end_step, or grow=None."
        )
    fraction = check_fraction("drop_fraction", drop_fraction)
    return Regrowth(DropSchedule(begin_step, end_step, every, fraction), grow, seed)


def _random_masks(rule: Rule, params: optax.Params, partition_specs: Any) -> Any:
    """Masks that keep as many weights as the rule says, drawn at random."""
    check_given(params)
    leaves = _tree.named_leaves(params)
    placement = shards(params, partition_specs, may_be_whole=True)
    assigned = assign([rule], leaves, [shard.shape for shard in placement])
    warn_of_dense_weights([rule], leaves, assigned)
    own = [i for i, position in enumerate(assigned) if position is not None]
    masks: list[Any] = [optax.MaskedNode()] * len(leaves)
    treedef: Any = jax.tree.structure(params)
    if not own:  # optax.tree.map_params calls init with no leaves
        return treedef.unflatten(masks)
    pruned = [
        PrunedLeaf(
            leaves[i].value, mask_like(leaves[i].value), placement[i], leaves[i].name
        )
        for i in own
    ]
    # A traced sparsity is known to a compiled program alone.
    schedule: Any = rule.schedule
    select = masks_at_step if is_traced(schedule.final_sparsity) else update_masks
    for i, mask in zip(own, select(rule, jnp.int32(0), pruned), strict=True):
        masks[i] = mask_like(leaves[i].value, mask)
    return treedef.unflatten(masks)


def _with_new_masks(
    regrowth: Regrowth,
    step: jax.Array,
    gradients: UpdateTree,
    tree: UpdateTree,
    moved: jax.Array,
) -> tuple[UpdateTree, jax.Array]:
    """The leaves with the masks that hold after a step, and how many weights moved.

    Args:
      regrowth: which weights move.
      step: integer scalar.
      gradients: the leaves with their gradients.
      tree: the same leaves, with what the optimizer made of the gradients.
      moved: the fraction of the live weights that the last update grew.
    """
    leaves = list(gradients.leaves)
    own = [i for i, leaf in enumerate(leaves) if leaf.is_pruned]
    updates = [leaf.update for leaf in tree.leaves]
    step = after(step, updates, [leaf.shard for leaf in leaves])
    pruned = [_pruned(regrowth, leaves[i]) for i in own]
    masks, moved = regrowth.at_step(step, pruned, moved)
    for i, mask in zip(own, masks, strict=True):
        leaves[i] = leaves[i]._replace(mask=mask)
    return gradients._replace(leaves=leaves), moved


def _that_stay(
    tree: UpdateTree, moved: UpdateTree, params: optax.Params
) -> tuple[UpdateTree, Any]:
    """The leaves with masks of what was live and stays so, and where masks changed.

    What is grown now was zero, but before the first step, and becomes zero.

    Args:
      tree: the leaves with the old masks.
      moved: the same leaves with the new ones.
      params: the parameters, also those that have no update.

    Returns:
      The leaves; and bools like the parameters, a scalar False where a leaf is dense.
    """
    leaves: list[LeafUpdate] = []
    changed: list[Any] = []
    own = tree.treedef.flatten_up_to(params)
    for leaf, new, weights in zip(tree.leaves, moved.leaves, own, strict=True):
        if not leaf.is_pruned:
            leaves.append(leaf)
            changed.append(jax.tree.map(lambda _: jnp.zeros([], bool), weights))
            continue
        old = laid_out_like(leaf.mask, new.mask)
        leaves.append(leaf._replace(mask=old & new.mask))
        changed.append(old ^ new.mask)
    return tree._replace(leaves=leaves), tree.treedef.unflatten(changed)


def _pruned(regrowth: Regrowth, leaf: LeafUpdate) -> PrunedLeaf:
    """A leaf for a mask update, with its gradient if that is read."""
    if regrowth.grow == "gradient":
        leaf = leaf._replace(gradient=leaf.fitting("gradient", leaf.update))
    return leaf.pruned()
