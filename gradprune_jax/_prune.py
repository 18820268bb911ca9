"""Pruning once, without an optimizer or a schedule."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax import _tree
from gradprune_jax._budget import Budget, as_budget, smallest_sparsity
from gradprune_jax._checks import check_sparsity, is_traced
from gradprune_jax._layouts import where_laid_out
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._plan import cost_of, plan
from gradprune_jax._rules import Allocation, Rule, Where, selected_leaves
from gradprune_jax._schedules import is_concrete, one_shot_schedule
from gradprune_jax._scores import AnyScore
from gradprune_jax._state import is_dense
from gradprune_jax._structures import NM, Structure, check_pattern

# Fields of a rule that may be tracers, and the numbers that replace them while the rule
# is a static argument. 1, because output_axis is refused beside min_per_channel=0.
_FLOORS: dict[str, Any] = {"min_density": 0.0, "min_per_channel": 1}

# More leaves than these are pruned outside a compiled program.
MOST_IN_ONE_PROGRAM = 64


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
        rule = _fitted(rule, params, gradients, as_budget(budget))
    masks = masks_of_rule(rule, params, gradients)
    treedef: Any = jax.tree.structure(params)
    own = zip(_tree.named_leaves(params), treedef.flatten_up_to(masks), strict=True)
    pruned = [
        leaf.value if is_dense(mask) else _zeroed(leaf.value, mask)
        for leaf, mask in own
    ]
    return treedef.unflatten(pruned), masks


def _fitted(rule: Rule, params: Any, gradients: Any, budget: Budget) -> Rule:
    """The rule with the smallest sparsity whose masks keep the budget."""
    leaves = _tree.named_leaves(params)
    if isinstance(rule.structure, NM):
        raise ValueError(f"structure is {rule.structure}, which has its own sparsity.")
    if any(is_traced(leaf.value) for leaf in leaves):
        raise ValueError(
            "budget is searched for with the weights, which are traced here; call "
            "prune outside of jit, or give the sparsity."
        )
    treedef: Any = jax.tree.structure(params)

    def at(sparsity: float) -> Rule:
        return dataclasses.replace(rule, schedule=one_shot_schedule(sparsity, 0))

    def cost_at(sparsity: float) -> int:
        planned = cost_of(plan([at(sparsity)], params), budget)
        if planned is not None:
            return planned
        masks = treedef.flatten_up_to(masks_of_rule(at(sparsity), params, gradients))
        return sum(
            budget.cost(np.shape(leaf.value), leaf.value.dtype.itemsize, kept)
            for leaf, kept in zip(leaves, map(_kept, leaves, masks), strict=True)
            if jnp.issubdtype(leaf.value.dtype, jnp.floating)
        )

    selected = set(selected_leaves(rule, params))
    dense = [
        leaf.name
        for i, leaf in enumerate(leaves)
        if i not in selected and jnp.issubdtype(leaf.value.dtype, jnp.floating)
    ]
    return at(smallest_sparsity(cost_at, budget, 0.0, dense))


def _kept(leaf: _tree.Leaf, mask: Any) -> int:
    """The weights that a leaf keeps: all of them where it is dense."""
    size = math.prod(np.shape(leaf.value))
    return size if is_dense(mask) else int(jnp.sum(mask, dtype=jnp.uint32))


def masks_of_rule(rule: Rule, params: Any, gradients: Any = None) -> Any:
    """The masks that `prune` returns, without the pruned parameters.

    Those take as much memory again, which a whole checkpoint may not leave.

    Args:
      rule: the rule, with a one-shot schedule.
      params: the parameters, plain or boxed.
      gradients: a tree like them, where the rule's score reads gradients.
    """
    leaves = _tree.named_leaves(params)
    own = selected_leaves(rule, params)
    of_leaf = _gradients_of(rule, params, gradients)
    masks: list[Any] = [optax.MaskedNode()] * len(leaves)
    names = tuple(leaves[i].name for i in own)
    wide = any(_is_wide(leaves[i].value) for i in own)
    with _enable_x64() if wide else contextlib.nullcontext():
        weights = [jnp.asarray(leaves[i].value) for i in own]
        seen = [None if each is None else jnp.asarray(each) for each in of_leaf]
        selected = _select_masks(rule, names, weights, [seen[i] for i in own])
    for i, mask in zip(own, selected, strict=True):
        masks[i] = mask
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(masks)


def _gradients_of(rule: Rule, params: Any, gradients: Any) -> list[Any]:
    """The gradient of every leaf, None where the score reads none."""
    treedef: Any = jax.tree.structure(params)
    needs = rule.score is not None and rule.score.needs_gradients
    if needs != (gradients is not None):
        problem = (
            "reads gradients; give them: gradients=jax.grad(loss_fn)(params)"
            if needs
            else "reads no gradients; leave gradients out"
        )
        raise ValueError(f"the score is {rule.score or 'magnitude'}, which {problem}.")
    if not needs:
        return [None] * treedef.num_leaves
    own = _tree.named_leaves(gradients)
    leaves = _tree.named_leaves(params)
    for leaf, gradient in itertools.zip_longest(leaves, own):
        if (
            leaf is None
            or gradient is None
            or leaf.name != gradient.name
            or np.shape(leaf.value) != np.shape(gradient.value)
        ):
            named = leaf or gradient
            raise ValueError(
                f"the gradients do not fit the parameters at {named.name!r}; they must "
                "be a tree like the parameters', with the same shapes."
            )
    return [gradient.value for gradient in own]


def _enable_x64() -> Any:
    """A context in which JAX computes in 64 bits; newer JAX has it in another place."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # type: ignore[attr-defined]

    return enable_x64()


def _is_wide(leaf: Any) -> bool:
    """Whether a leaf is a NumPy array of a dtype that JAX would narrow.

    Under jit it is what JAX makes of it, like every constant there.
    """
    if not isinstance(leaf, np.ndarray) or is_traced(jnp.zeros([])):
        return False
    return jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype


def _zeroed(leaf: Any, mask: jax.Array) -> Any:
    """The leaf where the mask is True, else +0.0; wide NumPy arrays stay such."""
    if _is_wide(leaf) and not is_traced(mask):
        return np.where(mask, leaf, np.zeros_like(leaf))
    weights = jnp.asarray(leaf)
    return where_laid_out(mask, weights, jnp.zeros_like(weights))


def _select_masks(
    rule: Rule,
    names: tuple[str, ...],
    weights: Sequence[jax.Array],
    gradients: Sequence[Any],
) -> list[jax.Array]:
    """The masks of one rule's leaves, from a compiled program.

    Sparsities and floors are passed as arguments, so that another value does not
    recompile. Of many leaves a program would take long to compile, so there each shape
    is compiled once, and the loop is Python's.
    """
    schedule: Any = rule.schedule
    program = dataclasses.replace(rule, where=None)
    if len(weights) > MOST_IN_ONE_PROGRAM and not _is_traced(rule, weights):
        leaves = _unpruned(program, names, weights, gradients)
        return update_masks(program, jnp.int32(0), leaves)
    arguments = {}
    if rule.allocation != "erk" or not is_concrete(schedule):
        arguments["schedule"] = schedule.final_sparsity
        program = dataclasses.replace(program, schedule=None)
    for floor, placeholder in _FLOORS.items():
        if is_traced(getattr(rule, floor)):
            arguments[floor] = getattr(rule, floor)
            program = dataclasses.replace(program, **{floor: placeholder})
    return _compiled_select(program, names, arguments, weights, gradients)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled_select(
    rule: Rule,
    names: tuple[str, ...],
    arguments: dict[str, Any],
    weights: Sequence[jax.Array],
    gradients: Sequence[Any],
) -> list[jax.Array]:
    """The masks of one rule's leaves; `arguments` are the fields that it lacks."""
    fields: dict[str, Any] = {
        name: one_shot_schedule(value, 0) if name == "schedule" else value
        for name, value in arguments.items()
    }
    rule = dataclasses.replace(rule, **fields)
    leaves = _unpruned(rule, names, weights, gradients)
    return update_masks(rule, jnp.int32(0), leaves)


def _unpruned(
    rule: Rule,
    names: Sequence[str],
    weights: Sequence[jax.Array],
    gradients: Sequence[Any],
) -> list[PrunedLeaf]:
    return [
        PrunedLeaf.unpruned(leaf, name, rule.score, gradient)
        for leaf, name, gradient in zip(weights, names, gradients, strict=True)
    ]


def _is_traced(rule: Rule, weights: Sequence[jax.Array]) -> bool:
    """Whether a number is known to a compiled program alone, or in parts on hosts."""
    schedule: Any = rule.schedule
    numbers = [getattr(rule, floor) for floor in _FLOORS]
    return (
        any(map(is_traced, (*numbers, *weights)))
        or not is_concrete(schedule)
        or not all(leaf.is_fully_addressable for leaf in weights)
    )
