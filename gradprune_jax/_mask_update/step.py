"""One rule's step: new masks on its update steps, old masks on all others.

Outside `jit`, a loop would be compiled at every step, and
`optax.inject_hyperparams` makes a new link at every step. So the compiled function is a
global of this module, and its cache is keyed by the rule. Traced numbers of the rule
are passed to it as arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from gradprune_jax._checks import is_traced
from gradprune_jax._in_place import update_if
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._mask_update.leaf import PrunedLeaf, with_masks, without_masks
from gradprune_jax._mask_update.update import update_masks
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import is_concrete, with_table


def masks_at_step(
    rule: Rule, step: jax.Array, leaves: Sequence[PrunedLeaf]
) -> list[jax.Array]:
    """The masks of one rule after a step: new ones if it is an update step.

    Equal rules share one compiled function. Outside `jit`, a rule whose numbers change
    from step to step is compiled at each change.

    Args:
      rule: the rule, with a schedule.
      step: integer scalar, the step of the schedule.
      leaves: the leaves that the rule prunes, in the order of the tree.

    Returns:
      The masks, bool, one a leaf.
    """
    schedule: Any = rule.schedule
    if schedule.fn is not None and not is_concrete(schedule):
        # Its function has tracers inside, which no compiled program may keep.
        return _update_if_due(rule, None, step, leaves)
    rule = dataclasses.replace(rule, where=None, schedule=with_table(schedule))
    known, traced = _split(rule)
    return _compiled_update_if_due(known, traced, step, leaves)


def _update_if_due(
    known: Any, traced: Any, step: jax.Array, leaves: Sequence[PrunedLeaf]
) -> list[jax.Array]:
    """New masks on an update step, else the old ones.

    Args:
      known: the rule without its traced numbers, as `_split` makes it.
      traced: these numbers, None if there are none.
      step: integer scalar.
      leaves: the leaves that the rule prunes.
    """
    rule = _join(known, traced)

    def update(masks: list[jax.Array], inputs: Any) -> list[jax.Array]:
        step, leaves = inputs
        return update_masks(rule, step, with_masks(leaves, masks))

    return update_if(
        rule.schedule.is_update_step(step),
        update,
        [laid_out_like(leaf.mask, leaf.weights) for leaf in leaves],
        (step, without_masks(leaves)),
    )


_compiled_update_if_due = jax.jit(_update_if_due, static_argnums=0)


def _split(value: Any) -> tuple[Any, Any]:
    """A rule as a hashable value without its tracers, and the tracers by field."""
    if is_traced(value):
        return None, value
    if not dataclasses.is_dataclass(value):
        return value, None
    fields = dataclasses.fields(value)
    pieces = {field.name: _split(getattr(value, field.name)) for field in fields}
    traced = {name: piece[1] for name, piece in pieces.items() if piece[1] is not None}
    if not traced:
        return value, None
    return (
        type(value),
        tuple((name, piece[0]) for name, piece in pieces.items()),
    ), traced


def _join(known: Any, traced: Any) -> Any:
    """Puts together the two parts that `_split` returned."""
    if traced is None:
        return known
    if not isinstance(traced, dict):
        return traced
    kind, fields = known
    return kind(**{name: _join(part, traced.get(name)) for name, part in fields})
