"""One rule's step: new masks on its update steps, by a program that is compiled once.

Outside `jit` a conditional would be compiled anew at every step, and
`optax.inject_hyperparams` makes a link anew at every step. So the program belongs to
this module, and is found again by the rule. Traced numbers of a rule are arguments of
the program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from gradprune_jax._checks import is_traced
from gradprune_jax._layouts import laid_out_like
from gradprune_jax._mask_update.update import update_masks
from gradprune_jax._rules.rule import Rule
from gradprune_jax._top_k.shards import Shard


def masks_at_step(
    rule: Rule,
    step: jax.Array,
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
    shards: Sequence[Shard],
) -> list[jax.Array]:
    """The masks of one rule after a step: new ones if it is an update step.

    Rules that are equal have one program. Outside `jit` a number of a rule that changes
    from step to step is another rule, and is compiled for.

    Args:
      rule: the rule, with a schedule.
      step: integer scalar, the step of the schedule.
      weights: its leaves, in the order of the tree.
      masks: their masks, bool.
      shards: where the leaves lie in whole arrays, inside `shard_map`.

    Returns:
      The masks, bool.
    """
    schedule: Any = rule.schedule
    if schedule.fn is not None and not schedule.is_concrete:
        # Its function has tracers inside, which no compiled program may keep.
        return _masks_at_step(rule, shards, step, weights, masks)
    rule = dataclasses.replace(rule, where=None, schedule=schedule.tabulated())
    known, traced = _split(rule)
    return _compiled_masks(known, tuple(shards), traced, step, weights, masks)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled_masks(
    known: Any, shards: tuple[Shard, ...], traced: Any, *arrays: Any
) -> list[jax.Array]:
    """`_masks_at_step`, with the traced numbers of the rule as arguments."""
    return _masks_at_step(_join(known, traced), shards, *arrays)


def _masks_at_step(
    rule: Rule,
    shards: Sequence[Shard],
    step: jax.Array,
    weights: Sequence[jax.Array],
    masks: Sequence[jax.Array],
) -> list[jax.Array]:
    schedule: Any = rule.schedule
    masks = list(map(laid_out_like, masks, weights))
    return jax.lax.cond(
        schedule.is_update_step(step),
        lambda: update_masks(rule, step, weights, masks, shards),
        lambda: masks,
    )


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
    """The rule of which `_split` made two."""
    if traced is None:
        return known
    if not isinstance(traced, dict):
        return traced
    kind, fields = known
    return kind(**{name: _join(part, traced.get(name)) for name, part in fields})
