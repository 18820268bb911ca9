"""The masks of one rule, from a compiled program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax import _tree
from gradprune_jax._checks import is_traced
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._pairing import is_wide
from gradprune_jax._rules import Rule, selected_leaves
from gradprune_jax._schedules import is_concrete, one_shot_schedule

# Fields of a rule that may be tracers, and the numbers that replace them while the rule
# is a static argument. 1, because output_axis is refused beside min_per_channel=0.
_FLOORS: dict[str, Any] = {"min_density": 0.0, "min_per_channel": 1}

# More leaves than these are pruned outside a compiled program.
MOST_IN_ONE_PROGRAM = 64


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
    wide = any(is_wide(leaves[i].value) for i in own)
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
