"""The wrapper: an optimizer that sees live weights only, then gradual pruning."""

from __future__ import annotations

from typing import Any

import chex
import optax

from gradprune_jax._rules import Allocation, ScheduleOrRules, Where, as_rules
from gradprune_jax._scores import AnyScore
from gradprune_jax._state import ScoredPruneState, WithGradualPruneState, check_state
from gradprune_jax._structures import Structure
from gradprune_jax._transform.leaves import as_arrays, pair_leaves
from gradprune_jax._transform.line_search import (
    change_masks,
    forget_losses,
    of_masked_loss,
)
from gradprune_jax._transform.links import new_masks, prune_step
from gradprune_jax._transform.scoring import (
    accumulates,
    new_scores,
    scores_of,
    with_scores,
)


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
    score: AnyScore | None = None,
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
      score: by what weights are ranked, see `Rule`; here also `Saliency()`,
        `Fisher(decay)`, `Movement()` and callables, which read the gradients before
        they are masked. A step's gradient is accumulated before the step ranks.
      output_axis: the axis of output channels.
      partition_specs: the parameters' specs inside `jax.shard_map`.

    Returns:
      A transformation with state `WithGradualPruneState`; with a score that
      accumulates, `ScoredPruneState`.

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
        score=score,
        output_axis=output_axis,
    )
    has_scores = accumulates(rules)
    kind = ScoredPruneState if has_scores else WithGradualPruneState

    def init_fn(params: optax.Params) -> WithGradualPruneState | ScoredPruneState:
        inner_state = inner.init(params)
        prune_state = new_masks(rules, params, partition_specs)
        if not has_scores:
            return WithGradualPruneState(inner_state, prune_state)
        scores = new_scores(rules, params, partition_specs)
        return ScoredPruneState(inner_state, prune_state, scores)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WithGradualPruneState | ScoredPruneState]:
        check_state(state, kind)
        params = as_arrays(params)
        step, masks = state.prune_state
        gradients = pair_leaves(updates, masks, params, rules, partition_specs)
        updates, inner_state = inner.update(
            gradients.zero_pruned(updates),
            state.inner_state,
            params,
            **of_masked_loss(extra_args, gradients.zero_pruned),
        )
        scored = with_scores(rules, gradients, state.scores if has_scores else None)
        updates, prune_state = prune_step(rules, scored.with_updates(updates), step)
        inner_state = forget_losses(inner_state, lambda: change_masks(rules, step))
        if not has_scores:
            return updates, WithGradualPruneState(inner_state, prune_state)
        return updates, ScoredPruneState(inner_state, prune_state, scores_of(scored))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
