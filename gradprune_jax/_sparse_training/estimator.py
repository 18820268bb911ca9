"""The straight-through estimator: sparse weights forward, dense gradients backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from gradprune_jax import _tree
from gradprune_jax._checks import as_number, check_integer, is_traced
from gradprune_jax._layouts import where_laid_out
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._rules import Rule, ScheduleOrRules, as_rules, assign
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._state import mask_like
from gradprune_jax._structures import NM, Structure
from gradprune_jax._transform import as_arrays, check_needs_none, shards


def straight_through(
    params: Any,
    schedule_or_rules_or_structure: ScheduleOrRules | Structure,
    *,
    decay: float = 2e-4,
    step: chex.Numeric | None = None,
    partition_specs: Any = None,
) -> Any:
    r"""Sparse parameters whose gradients reach the dense ones: SR-STE.

    With m the exact top k of the parameters w, in the forward pass

    $$
    \tilde w = \begin{cases} w & m \\ +0 & \text{otherwise,} \end{cases}
    $$

    and in the backward pass, for a decay $\lambda$,

    $$
    g_w = g_{\tilde w} + \lambda \, (1 - m) \, w .
    $$

    So weights that are not kept go on learning and may come back, and decay as long as
    they are not. Call it inside the loss function, on what the optimizer trains; in the
    end `prune` makes the same selection once and for all.

    Args:
      params: the dense parameters, plain or boxed.
      schedule_or_rules_or_structure: `NM(...)` for its fixed pattern, or a schedule or
        rules, as for `gradual_prune`. Scores that read gradients do not go with it.
      decay: $\lambda$; 0 is the plain straight-through estimator.
      step: the step of the schedules, traced or not; None is their end, for a sparsity
        that stays the same.
      partition_specs: the parameters' specs inside `jax.shard_map`.

    Returns:
      The sparse parameters, a tree like `params`. Differentiable once.

    Raises:
      ValueError: if an argument is not valid, or a rule matches nothing.

    Examples:
      >>> import gradprune_jax as gp
      >>> params = {"kernel": jnp.array([[4.0], [1.0], [3.0], [2.0]])}
      >>> sparse = straight_through(params, gp.NM(2, 4))
      >>> print(sparse["kernel"].ravel())
      [4. 0. 3. 0.]
      >>> def loss_fn(params):
      ...     return straight_through(params, gp.NM(2, 4), decay=0.5)["kernel"].sum()
      >>> print(jax.grad(loss_fn)(params)["kernel"].ravel())
      [1.  1.5 1.  2. ]

    References:
      Zhou et al., [Learning N:M fine-grained structured sparse neural networks from
      scratch](https://arxiv.org/abs/2102.04010), 2021, equation 9; Bengio et al.,
      [Estimating or propagating gradients](https://arxiv.org/abs/1308.3432), 2013.
    """
    rules = _rules(schedule_or_rules_or_structure)
    number = as_number(decay)
    if number is None or not 0 <= number < float("inf"):
        raise ValueError(f"decay is {decay!r}; it must be a number, at least 0.")
    if step is not None:
        step = jnp.asarray(check_integer("step", step, minimum=0))
        if step.ndim:
            raise ValueError(f"step has shape {step.shape}; it must be one number.")
    params = as_arrays(params)
    leaves = _tree.named_leaves(params)
    placement = shards(params, partition_specs)
    assigned = assign(rules, leaves, [shard.shape for shard in placement])
    values = [leaf.value for leaf in leaves]
    for position, rule in enumerate(rules):
        own = [i for i, found in enumerate(assigned) if found == position]
        if not own:
            continue
        pruned = [
            PrunedLeaf(weights, mask_like(weights), placement[i], leaves[i].name)
            for i in own
            for weights in [jax.lax.stop_gradient(values[i])]
        ]
        at = jnp.int32(rule.schedule.end_step) if step is None else step
        # A traced step is known to a compiled program alone.
        select = _compiled_update if is_traced(at) else update_masks
        for i, mask in zip(own, select(rule, at, pruned), strict=True):
            values[i] = _sparse(number, values[i], mask)
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(values)


def _rules(given: Any) -> Sequence[Any]:
    """The rules that a user wrote, a structure alone among them."""
    if isinstance(given, NM):
        return [Rule(one_shot_schedule(1 - given.keep / given.of, 0), structure=given)]
    if isinstance(given, Structure):
        raise ValueError(
            f"the structure is {given!r}, which has no sparsity of its own; give a "
            "schedule or a Rule with this structure."
        )
    rules = as_rules(given)
    check_needs_none(
        rules, "straight_through has the parameters alone; leave score out"
    )
    return rules


_compiled_update = jax.jit(update_masks, static_argnums=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sparse(decay: float, weights: jax.Array, mask: jax.Array) -> jax.Array:
    """The weights where their mask is True, else +0.0."""
    del decay  # of the backward pass
    return where_laid_out(mask, weights, jnp.zeros_like(weights))


def _forward(decay: float, weights: jax.Array, mask: jax.Array) -> tuple[Any, Any]:
    return _sparse(decay, weights, mask), (weights, mask)


def _backward(decay: float, saved: Any, gradient: jax.Array) -> tuple[Any, Any]:
    weights, mask = saved
    pull = jnp.asarray(decay, weights.dtype) * weights
    dense = gradient + where_laid_out(mask, jnp.zeros_like(weights), pull)
    return dense, None


_sparse.defvjp(_forward, _backward)
