"""The wrapper: an optimizer that sees live weights only, then gradual pruning."""

from __future__ import annotations

from typing import Any

import chex
import optax

from gradprune_jax._rules import Allocation, ScheduleOrRules, Where, as_rules
from gradprune_jax._state import WithGradualPruneState, check_state
from gradprune_jax._structures import Structure
from gradprune_jax._transform.leaves import as_arrays, pair_leaves
from gradprune_jax._transform.line_search import (
    change_masks,
    forget_losses,
    of_masked_loss,
)
from gradprune_jax._transform.links import gradual_prune


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
    r"""Wraps an optimizer: masks its gradients, and prunes its updates.

    The gradient is masked before the optimizer, with the masks as they stood before
    the step, as in a forward pass of weight times mask. So momentum and global-norm
    clipping see nothing of a pruned weight's gradient:

    $$
    u = \mathrm{inner}(m \odot g), \qquad
    u', m' = \mathrm{gradual\_prune}(u, m, p).
    $$

    Args:
      inner: the optimizer, a whole chain with clipping for example.
      schedule_or_rules: as for `gradual_prune`. The arguments below are the same too.
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
        tree = pair_leaves(updates, state.prune_state.masks, params)
        updates, inner_state = inner.update(
            tree.zero_pruned(updates),
            state.inner_state,
            params,
            **of_masked_loss(extra_args, tree.zero_pruned),
        )
        updates, prune_state = prune.update(updates, state.prune_state, params)
        step = state.prune_state.count
        inner_state = forget_losses(inner_state, lambda: change_masks(rules, step))
        return updates, WithGradualPruneState(inner_state, prune_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
