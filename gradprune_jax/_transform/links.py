"""The links of an optax chain that prune: by rules, or by masks that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from gradprune_jax import _tree
from gradprune_jax._mask_update import masks_at_step
from gradprune_jax._pairing import pair_with_masks
from gradprune_jax._rules import (
    Allocation,
    Rule,
    ScheduleOrRules,
    Where,
    as_rules,
    assign,
    warn_of_dense_weights,
)
from gradprune_jax._scores import AnyScore
from gradprune_jax._state import GradualPruneState, check_state, is_dense, mask_like
from gradprune_jax._structures import Structure
from gradprune_jax._transform.leaves import (
    LeafUpdate,
    UpdateTree,
    check_given,
    pair_leaves,
)
from gradprune_jax._transform.order import after
from gradprune_jax._transform.partition_specs import shards
from gradprune_jax._transform.scoring import check_needs_none


def gradual_prune(
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

    so that `optax.apply_updates` leaves every pruned weight at exactly +0.0. The masks
    are the exact top k: ties go to the lower flat index, NaN ranks above infinity, and
    the result is the same on every mesh.

    Put it last in the chain: whatever follows it would undo it. Under gradient
    accumulation the whole chain goes inside `optax.MultiSteps`; with
    `optax.contrib.schedule_free` it goes outside. `optax.lookahead` cannot be
    supported: inside it the slow copy of the parameters keeps what is zeroed in the
    fast one, and outside the two copies would get different masks.

    Args:
      schedule_or_rules: a schedule, or a list of `Rule`, of which the first that
        matches a parameter prunes it.
      where: which parameters to prune, see `Rule`; by default `is_weight`. Under
        `optax.inject_hyperparams` a callable must be named in its `static_args`.
      structure: which weights are kept together: `Unstructured()`, which None stands
        for, `NM`, `Block`, `Channel` or `CoupledChannels`.
      allocation: `"uniform"`, every leaf at the schedule's sparsity, `"global"`,
        one threshold over all leaves, or `"erk"`, Erdos-Renyi-kernel densities.
      stack_axis: the axis along which layers are stacked, each pruned as if alone. It
        holds for every leaf that is pruned: stacked and other leaves need a rule each.
        Under `optax.inject_hyperparams` it must be in `static_args`.
      min_density: under global allocation, the fraction that each leaf keeps at least.
      min_per_channel: the smallest number of weights that every output channel keeps.
        Set it where a layer divides its kernel by its own deviation or norm (weight
        standardisation, WeightNorm): a channel of zeros would give NaN there.
      score: by what weights are ranked, see `Rule`: `Magnitude()`, which None stands
        for, or `Random(seed)`. Scores that read gradients go with `with_gradual_prune`.
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
        score=score,
        output_axis=output_axis,
    )

    check_needs_none(
        rules,
        "gradual_prune gets updates, which an optimizer has made of them. Wrap the "
        "optimizer: with_gradual_prune(optimizer, schedule, score=...)",
    )

    def init_fn(params: optax.Params) -> GradualPruneState:
        return new_masks(rules, params, partition_specs)

    def update_fn(
        updates: optax.Updates,
        state: GradualPruneState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradualPruneState]:
        del extra_args
        check_state(state, GradualPruneState)
        tree = pair_leaves(updates, state.masks, params, rules, partition_specs)
        return prune_step(rules, tree, state.count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def keep_masks(masks: Any) -> optax.GradientTransformationExtraArgs:
    r"""Keeps given masks as they are: the last link of an optax chain.

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
        treedef: Any = jax.tree.structure(params, is_leaf=is_dense)
        if not jax.tree.leaves(params):  # optax.tree.map_params calls init so
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
        tree = pair_leaves(updates, state.masks, params)
        count = optax.safe_increment(state.count)
        return tree.updates(), state._replace(count=count)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def new_masks(
    rules: Sequence[Rule], params: optax.Params, partition_specs: Any
) -> GradualPruneState:
    """The state before the first step: nothing is pruned."""
    check_given(params)
    leaves = _tree.named_leaves(params)
    placement = shards(params, partition_specs, may_be_whole=True)
    assigned = assign(rules, leaves, [shard.shape for shard in placement])
    warn_of_dense_weights(rules, leaves, assigned)
    masks = [
        optax.MaskedNode() if position is None else mask_like(leaf.value)
        for leaf, position in zip(leaves, assigned, strict=True)
    ]
    treedef: Any = jax.tree.structure(params)
    return GradualPruneState(jnp.zeros([], jnp.int32), treedef.unflatten(masks))


def prune_step(
    rules: Sequence[Rule], tree: UpdateTree, count: jax.Array
) -> tuple[optax.Updates, GradualPruneState]:
    """The updates and the state after a step of every rule.

    Args:
      rules: the rules.
      tree: the leaves, with updates, masks, and what scores read.
      count: the number of steps done.
    """
    tree = _with_new_masks(rules, count, tree)
    state = GradualPruneState(optax.safe_increment(count), tree.masks())
    return tree.updates(), state


def _with_new_masks(
    rules: Sequence[Rule], step: jax.Array, tree: UpdateTree
) -> UpdateTree:
    """The leaves with the masks that hold after a step of every rule."""
    leaves = list(tree.leaves)
    _check_rules(leaves)
    placement = [leaf.shard for leaf in leaves]
    step = after(step, [leaf.update for leaf in leaves], placement)
    for position, rule in enumerate(rules):
        # By position, because two leaves may have one name.
        own = [i for i, leaf in enumerate(leaves) if leaf.rule == position]
        if not own:
            continue
        masks = masks_at_step(rule, step, [leaves[i].pruned() for i in own])
        for i, mask in zip(own, masks, strict=True):
            leaves[i] = leaves[i]._replace(mask=mask)
        if position + 1 < len(rules):
            step = after(step, masks, placement)
    return tree._replace(leaves=leaves)


def _check_rules(leaves: Sequence[LeafUpdate]) -> None:
    """Refuses a state that was made by other rules."""
    for leaf in leaves:
        is_ruled = leaf.rule is not None
        if leaf.update is not None and leaf.is_pruned != is_ruled:
            has, do = ("a", "do not prune") if leaf.is_pruned else ("no", "prune")
            raise ValueError(
                f"the state has {has} mask for {leaf.name!r}, but the rules {do} it; a "
                "state goes on only with the rules that it was made by."
            )
