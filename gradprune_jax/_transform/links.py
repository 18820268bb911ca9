"""The transformation: pruning as one link of an optax chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from gradprune_jax import _tree
from gradprune_jax._mask_update.step import masks_at_step
from gradprune_jax._rules.rule import Allocation, Rule, Where, as_rules, assign
from gradprune_jax._rules.weights import warn_of_dense_weights
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._state import (
    GradualPruneState,
    WithGradualPruneState,
    check_state,
    is_dense,
    mask_like,
    masks_by_leaf,
)
from gradprune_jax._structures import Structure
from gradprune_jax._top_k.shards import shards
from gradprune_jax._transform.absent import (
    as_arrays,
    check_given,
    with_absent,
    without_absent,
)
from gradprune_jax._transform.line_search import (
    change_masks,
    forget_losses,
    of_masked_loss,
)
from gradprune_jax._transform.order import after
from gradprune_jax._transform.zeroing import map_pruned, mask_gradient, zero_pruned

ScheduleOrRules = SparsitySchedule | Rule | Sequence[Rule]


def gradual_prune(
    schedule_or_rules: ScheduleOrRules,
    *,
    where: Where | None = None,
    structure: Structure | None = None,
    allocation: Allocation = "uniform",
    stack_axis: int | None = None,
    min_density: chex.Numeric = 0.0,
    min_per_channel: chex.Numeric = 0,
    output_axis: int | None = None,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradual magnitude pruning: the last link of an optax chain.

    With p the parameters, u the updates that reach this link, and m the masks: on an
    update step of the schedule

    $$
    m \leftarrow m \wedge \mathrm{top}_k(m, |p|)
    $$

    ranked by the mask first, so that a live weight of zero comes before every pruned
    one, and at every step

    $$
    u' = \begin{cases} u & m \\ -p & \text{otherwise,} \end{cases}
    $$

    so that `optax.apply_updates` leaves every pruned weight at exactly +0.0. The
    masks are the exact top k: ties go to the lower flat index, NaN ranks above
    infinity, and the result is the same on every mesh.

    Put it last in the chain: whatever follows it would undo it. Under gradient
    accumulation the whole chain goes inside `optax.MultiSteps`; with
    `optax.contrib.schedule_free` it goes outside. `optax.lookahead` cannot be
    supported: inside it the slow copy of the parameters keeps what is zeroed in the
    fast one, and outside the two copies would get different masks.

    Args:
      schedule_or_rules: a schedule, or a list of `Rule`, of which the first that
        matches a parameter prunes it.
      where: which parameters to prune, see `Rule`; by default
        `is_weight`. Under `optax.inject_hyperparams` a callable must be named
        in its `static_args`.
      structure: which weights are kept together: `Unstructured()`, which None stands
        for, `NM`, `Block` or `Channel`.
      allocation: `"uniform"`, every leaf at the schedule's sparsity, `"global"`,
        one threshold over all leaves, or `"erk"`, Erdos-Renyi-kernel densities.
      stack_axis: the axis along which layers are stacked, each pruned as if alone. It
        holds for every leaf that is pruned: stacked and other leaves need a rule each.
        Under `optax.inject_hyperparams` it must be in `static_args`.
      min_density: under global allocation, the fraction that each leaf keeps at least.
      min_per_channel: the weights that stay at least in every output channel. Without
        it a whole filter may die, and a layer that divides its kernel by its own
        deviation or norm (weight standardisation, WeightNorm) then gives NaN.
      output_axis: the axis of output channels, None for the last. Under
        `optax.inject_hyperparams` it must be in `static_args`.
      partition_specs: only inside `jax.shard_map`, where parameters are local
        shards: their `PartitionSpec` tree, or a prefix of it, as given to it.

    Returns:
      A transformation with state `GradualPruneState`. `init` and `update` raise
      ValueError for a rule that matches nothing, parameters that cannot be pruned, and
      a state that does not fit the rules.

    Raises:
      ValueError: if a field of the rule is not valid.
      TypeError: if the first argument is neither a schedule nor rules.

    Examples:
      >>> import gradprune_jax as gp
      >>> schedule = gp.polynomial_schedule(0.75, begin_step=0, end_step=2, every=1)
      >>> tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(schedule))
      >>> params = {"kernel": jnp.array([[4.0, -3.0], [2.0, 1.0]])}
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update({"kernel": jnp.zeros((2, 2))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params["kernel"])
      [[4. 0.]
       [0. 0.]]

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
      2017, section 3.
    """
    rules = as_rules(
        schedule_or_rules,
        where=where,
        structure=structure,
        allocation=allocation,
        stack_axis=stack_axis,
        min_density=min_density,
        min_per_channel=min_per_channel,
        output_axis=output_axis,
    )

    def init_fn(params: optax.Params) -> GradualPruneState:
        check_given(params)
        leaves: list[Any]
        treedef: Any
        leaves, treedef = jax.tree.flatten(params)
        placement = shards(params, partition_specs, may_be_whole=True)
        assigned = assign(rules, params, [shard.shape for shard in placement])
        warn_of_dense_weights(rules, params, assigned)
        masks = [
            optax.MaskedNode() if position is None else mask_like(leaf)
            for leaf, position in zip(leaves, assigned, strict=True)
        ]
        return GradualPruneState(jnp.zeros([], jnp.int32), treedef.unflatten(masks))

    def update_fn(
        updates: optax.Updates,
        state: GradualPruneState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradualPruneState]:
        del extra_args
        check_state(state, GradualPruneState)
        params, masks_tree = without_absent(updates, params, state.masks)
        leaves: list[Any]
        treedef: Any
        leaves, treedef = jax.tree.flatten(params)
        placement = shards(params, partition_specs)
        shapes = [shard.shape for shard in placement]
        assigned = assign(rules, params, shapes, all_match=False)  # some may be absent
        masks = masks_by_leaf(masks_tree, params)
        _check_rules(masks, params, assigned)
        step = after(state.count, jax.tree.leaves(updates), placement)
        for position, rule in enumerate(rules):
            own = [i for i, owner in enumerate(assigned) if owner == position]
            if own and rule.schedule is not None:
                new = masks_at_step(
                    rule,
                    step,
                    [leaves[i] for i in own],
                    [masks[i] for i in own],
                    [placement[i] for i in own],
                )
                masks = _replaced(masks, own, new)
                if position + 1 < len(rules):
                    step = after(step, new, placement)
        new_updates = map_pruned(zero_pruned, treedef, masks, params, updates)
        new_masks = with_absent(updates, treedef.unflatten(masks), state.masks)
        count = optax.safe_increment(state.count)
        return new_updates, GradualPruneState(count, new_masks)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def with_gradual_prune(
    inner: optax.GradientTransformation,
    schedule_or_rules: ScheduleOrRules,
    *,
    where: Where | None = None,
    structure: Structure | None = None,
    allocation: Allocation = "uniform",
    stack_axis: int | None = None,
    min_density: chex.Numeric = 0.0,
    min_per_channel: chex.Numeric = 0,
    output_axis: int | None = None,
    partition_specs: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer that sees live weights only, followed by gradual pruning.

    The gradient is masked before the optimizer, with the masks as they stood before
    the step, as it is when the forward pass uses weight times mask: so momentum and
    global-norm clipping take no part of a pruned weight's gradient,

    $$
    u = \mathrm{inner}(m \odot g), \qquad
    u', m' = \mathrm{gradual\_prune}(u, m, p).
    $$

    Args:
      inner: the optimizer, a whole chain with clipping for example.
      schedule_or_rules: as for `gradual_prune`, and so all other arguments.
      where: which parameters to prune.
      structure: which weights are kept together.
      allocation: how the sparsity is shared out.
      stack_axis: the axis along which layers are stacked.
      min_density: the fraction that each leaf keeps at least.
      min_per_channel: the weights that stay at least in every output channel.
      output_axis: the axis of output channels.
      partition_specs: the parameters' specs inside `jax.shard_map`.

    Returns:
      A transformation with state `WithGradualPruneState`.

    Examples:
      >>> import gradprune_jax as gp
      >>> schedule = gp.polynomial_schedule(0.9, begin_step=1_000, end_step=10_000)
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
      >>> tx = gp.with_gradual_prune(clipped, schedule)

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
      2017, section 3.
    """
    if not hasattr(inner, "update"):
        raise ValueError(
            f"inner is {inner!r}; it must be an optax optimizer, and comes before the "
            "schedule: with_gradual_prune(optimizer, schedule)."
        )
    inner = optax.with_extra_args_support(inner)
    rules = as_rules(
        schedule_or_rules,
        where=where,
        structure=structure,
        allocation=allocation,
        stack_axis=stack_axis,
        min_density=min_density,
        min_per_channel=min_per_channel,
        output_axis=output_axis,
    )
    prune = gradual_prune(rules, partition_specs=partition_specs)

    def init_fn(params: optax.Params) -> WithGradualPruneState:
        return WithGradualPruneState(inner.init(params), prune.init(params))

    def update_fn(
        updates: optax.Updates,
        state: WithGradualPruneState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithGradualPruneState]:
        check_state(state, WithGradualPruneState)
        params = as_arrays(params)
        present, masks_tree = without_absent(updates, params, state.prune_state.masks)
        treedef = jax.tree.structure(present)
        masks = masks_by_leaf(masks_tree, present)

        def mask_tree(tree: Any) -> Any:
            return map_pruned(mask_gradient, treedef, masks, present, tree)

        updates, inner_state = inner.update(
            mask_tree(updates),
            state.inner_state,
            params,
            **of_masked_loss(extra_args, mask_tree),
        )
        updates, prune_state = prune.update(updates, state.prune_state, params)
        step = state.prune_state.count
        inner_state = forget_losses(inner_state, lambda: change_masks(rules, step))
        return updates, WithGradualPruneState(inner_state, prune_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_rules(
    masks: Sequence[Any], params: Any, assigned: Sequence[int | None]
) -> None:
    """Refuses a state that was made by other rules."""
    leaves = _tree.named_leaves(params)
    for leaf, mask, position in zip(leaves, masks, assigned, strict=True):
        if is_dense(mask) != (position is None):
            has, do = ("no", "prune") if is_dense(mask) else ("a", "do not prune")
            raise ValueError(
                f"the state has {has} mask for {leaf.name!r}, but the rules {do} it; a "
                "state goes on only with the rules that it was made by."
            )


def _replaced(
    items: Sequence[Any], positions: Sequence[int], new: Sequence[Any]
) -> list[Any]:
    """The items with those at the positions exchanged for the new ones."""
    exchanged = dict(zip(positions, new, strict=True))
    return [exchanged.get(i, item) for i, item in enumerate(items)]
