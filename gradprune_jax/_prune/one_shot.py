"""`prune`: parameters with zeros, and their masks."""

from __future__ import annotations

from typing import Any

import chex
import jax

from gradprune_jax import _tree
from gradprune_jax._budget import Budget, as_budget
from gradprune_jax._checks import check_sparsity
from gradprune_jax._pairing import zeroed
from gradprune_jax._prune.fitting import fitted
from gradprune_jax._prune.masks import masks_of_rule
from gradprune_jax._rules import Allocation, Rule, Where
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._scores import AnyScore
from gradprune_jax._state import is_dense
from gradprune_jax._structures import Structure, check_pattern


def prune(
    params: Any,
    sparsity: chex.Numeric | None = None,
    *,
    budget: int | Budget | None = None,
    where: Where | None = None,
    structure: Structure | None = None,
    allocation: Allocation = "uniform",
    stack_axis: int | None = None,
    min_density: chex.Numeric = 0.0,
    min_per_channel: chex.Numeric = 0,
    score: AnyScore | None = None,
    gradients: Any = None,
    output_axis: int | None = None,
) -> tuple[Any, Any]:
    r"""Prunes parameters at once, without training.

    $$
    m = \mathrm{top}_k(|p|), \qquad p' = \begin{cases} p & m \\ +0 &
    \text{otherwise} \end{cases}
    $$

    Args:
      params: the parameters, plain or boxed.
      sparsity: the fraction of zeros, in [0, 1]; may be a tracer. With `NM`
        it must be 1 - keep/of. A tracer is not checked, and N:M keeps its own sparsity.
      budget: in place of the sparsity, what the model may have: a number of non-zeros
        or a `Budget`. The smallest sparsity that fits is found by about 30 plans, or
        selections where what is kept depends on the weights.
      where: which parameters to prune, see `Rule`.
      structure: which weights are kept together.
      allocation: `"uniform"`, `"global"` or `"erk"`.
      stack_axis: the axis along which layers are stacked, in all leaves that are
        pruned; leave out by `where` what is not stacked.
      min_density: under global allocation, the fraction that each leaf keeps at least.
      min_per_channel: the weights that each output channel keeps at least.
      score: by what weights are ranked, see `Rule`; by default their magnitude.
      gradients: a tree like the parameters', where the score reads gradients.
      output_axis: the axis of output channels; None is the last.

    Returns:
      The pruned parameters, and the masks: bool arrays, True where a weight is kept,
      and `optax.MaskedNode()` where a leaf is dense. May be called under `jit`.
      NumPy arrays keep their dtype, also one that JAX would narrow (float64 while x64
      is off), and are ranked in it.

    Raises:
      ValueError: if an argument is not valid, nothing is selected, a selected leaf
        cannot be pruned, or the budget cannot be kept.

    Examples:
      >>> import jax.numpy as jnp
      >>> params, masks = prune({"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]])}, 0.5)
      >>> print(params["kernel"])
      [[3. 0.]
       [0. 2.]]
    """
    if (sparsity is None) == (budget is None):
        raise ValueError(
            f"sparsity is {sparsity} and budget is {budget}; give one of them."
        )
    given = check_sparsity("sparsity", 0.5 if sparsity is None else sparsity)
    if budget is None:
        check_pattern("sparsity", given, structure)
    rule = Rule(
        one_shot_schedule(given, 0),
        where=where,
        structure=structure,
        allocation=allocation,
        stack_axis=stack_axis,
        min_density=min_density,
        min_per_channel=min_per_channel,
        score=score,
        output_axis=output_axis,
    )
    if budget is not None:
        rule = fitted(rule, params, gradients, as_budget(budget))
    masks = masks_of_rule(rule, params, gradients)
    treedef: Any = jax.tree.structure(params)
    own = zip(_tree.named_leaves(params), treedef.flatten_up_to(masks), strict=True)
    pruned = [
        leaf.value if is_dense(mask) else zeroed(leaf.value, mask) for leaf, mask in own
    ]
    return treedef.unflatten(pruned), masks
