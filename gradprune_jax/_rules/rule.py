"""Rule: which parameters are pruned, on which schedule, in which structure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax

from gradprune_jax import _tree
from gradprune_jax._checks import (
    as_decimal,
    check_axis,
    check_fraction,
    check_integer,
    is_traced,
    may_be_nonzero,
)
from gradprune_jax._rules.weights import is_weight
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._scores import as_score
from gradprune_jax._structures import (
    NM,
    CoupledChannels,
    Structure,
    check_pattern,
)

Where = str | Callable[[_tree.Path, jax.ShapeDtypeStruct], bool]
Allocation = Literal["uniform", "global", "erk"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Prunes the parameters that `where` selects.

    Attributes:
      schedule: when and how sparse; None leaves the selected parameters dense.
      where: a regular expression that matches the whole path (keys joined by `/`), or
        a callable `(path, leaf) -> bool` that gets the keys as a tuple of strings
        and the leaf's shape and dtype. None is `is_weight`; with `CoupledChannels`, all
        members of its groups, and it never selects others.
      structure: which weights are kept or dropped together: `Unstructured()`, which
        None stands for, `NM`, `Block`, `Channel` or `CoupledChannels`.
      allocation: how sparse each leaf is. `"uniform"`: every leaf at the schedule's
        sparsity, as in the paper. `"global"`: one threshold over all leaves of the
        rule. `"erk"`: Erdos-Renyi-kernel densities, higher for small and for narrow
        leaves, with the schedule's final sparsity over all of them together; with a
        traced sparsity each leaf may keep one unit more or less than with the number.
        N:M has a sparsity of its own, and is uniform always; for coupled channels read
        group in place of leaf, and there are no `"erk"` densities.
      stack_axis: the axis along which layers are stacked (`nn.scan`, `nnx.vmap`).
        Each layer is pruned as if it were a leaf by itself, with its own threshold
        unless the allocation is global. It applies to every leaf of the rule: write
        one rule for stacked leaves and one for the others.
      min_density: under global allocation, the fraction of every leaf that is kept at
        least, in [0, 1], so that no layer collapses. May be a tracer.
      min_per_channel: the smallest number of weights that every output channel keeps,
        under every allocation; a channel with fewer weights keeps all of them. Set it
        where a layer divides its kernel by its own deviation or norm (weight
        standardisation, WeightNorm): a channel of zeros would give NaN there. May be a
        tracer; a tracer is not checked against the structure.
      score: by what weights are ranked: `Magnitude()`, which None stands for,
        `Random(seed)`, `Saliency()`, `Fisher(decay)`, `Movement()`, or a callable
        `(param, gradient) -> array` of the parameter's shape, ranked by its value. All
        but the first two read gradients, which `with_gradual_prune` sees.
      output_axis: the axis of output channels, for `min_per_channel`; of a stacked
        leaf, an axis of its slices. None is the last, as in Flax, Haiku and Keras;
        kernels of Equinox and PyTorch, (out, in, ...), have 0.

    Raises:
      ValueError: if a field is not one of the values above.

    Examples:
      >>> from gradprune_jax import polynomial_schedule
      >>> schedule = polynomial_schedule(0.9, begin_step=0, end_step=1_000)
      >>> rules = [Rule(None, where="head/.*"), Rule(schedule)]  # the first match wins
    """

    schedule: SparsitySchedule | None
    where: Where | None = None
    structure: Structure | None = None
    allocation: Allocation = "uniform"
    stack_axis: int | None = None
    min_density: Any = 0.0
    min_per_channel: Any = 0
    score: Any = None
    output_axis: int | None = None

    def __post_init__(self) -> None:
        _check_schedule(self.schedule)
        _check_where(self.where)
        _check_structure(self.structure)
        if self.allocation not in get_args(Allocation):
            raise ValueError(
                f"allocation is {self.allocation!r}; it must be one of "
                f"{get_args(Allocation)}."
            )
        for name in ("stack_axis", "output_axis"):
            object.__setattr__(self, name, check_axis(name, getattr(self, name)))
        object.__setattr__(self, "score", as_score(self.score))
        density = check_fraction("min_density", self.min_density)
        if not is_traced(density):
            density = as_decimal(self.min_density)
        object.__setattr__(self, "min_density", density)
        if self.where is is_weight:
            object.__setattr__(self, "where", None)
        if isinstance(self.structure, NM) and self.allocation != "uniform":
            raise ValueError(
                f"allocation is {self.allocation!r} with {self.structure!r}, whose "
                "groups all keep the same; N:M goes with allocation='uniform' alone."
            )
        if isinstance(self.structure, CoupledChannels):
            self._check_coupled()
        if self.schedule is not None:
            final = self.schedule.final_sparsity
            check_pattern("the schedule's final_sparsity", final, self.structure)
        has_floor = not is_traced(density) and density != 0
        if self.allocation != "global" and has_floor:
            raise ValueError(
                f"min_density is {self.min_density!r} with allocation="
                f"{self.allocation!r}; it is a floor under allocation='global' alone."
            )
        least = check_integer("min_per_channel", self.min_per_channel, minimum=0)
        object.__setattr__(self, "min_per_channel", least)
        if self.output_axis is not None and not may_be_nonzero(least):
            raise ValueError(
                f"output_axis is {self.output_axis} with min_per_channel=0; it says "
                "along which axis min_per_channel counts, so give both or neither."
            )

    def _check_coupled(self) -> None:
        """Refuses fields that coupled channels have no meaning for."""
        structure = "CoupledChannels"
        if self.allocation == "erk":
            raise ValueError(
                f"allocation is 'erk' with {structure}, whose groups have no inputs "
                "and outputs; it goes with 'uniform' and 'global'."
            )
        if self.stack_axis is not None:
            raise ValueError(
                f"stack_axis is {self.stack_axis} with {structure}; a channel of "
                "stacked layers is dropped in all of them, and the groups know where "
                "they lie. Leave stack_axis out."
            )
        if may_be_nonzero(self.min_per_channel):
            raise ValueError(
                f"min_per_channel is {self.min_per_channel!r} with {structure}, which "
                "drops whole channels; leave it out, or set min_density under "
                "allocation='global'."
            )

    def __str__(self) -> str:
        match self.where:
            case None:
                coupled = isinstance(self.structure, CoupledChannels)
                where = "members of the groups" if coupled else "is_weight"
            case str(pattern):
                where = repr(pattern)
            case predicate:
                where = getattr(predicate, "__name__", repr(predicate))
        return f"where={where}"


ScheduleOrRules = SparsitySchedule | Rule | Sequence[Rule]


def as_rules(schedule_or_rules: Any, **fields: Any) -> tuple[Rule, ...]:
    """The rules that a user wrote as one schedule with fields, or as a list.

    Args:
      schedule_or_rules: a schedule, a rule, or a sequence of rules.
      **fields: the fields of the one rule of a schedule.

    Returns:
      The rules.

    Raises:
      ValueError: if rules come together with fields of a rule.
      TypeError: if the first argument is none of these.
    """
    if isinstance(schedule_or_rules, Rule):
        schedule_or_rules = [schedule_or_rules]
    if not isinstance(schedule_or_rules, list | tuple):
        if schedule_or_rules is None:
            raise TypeError(
                "the schedule is None; it must be a SparsitySchedule, such as "
                "polynomial_schedule(...), or a list of Rules."
            )
        return (Rule(schedule_or_rules, **fields),)
    rules = tuple(schedule_or_rules)
    if not rules:
        raise ValueError("the list of rules is empty; it needs at least one Rule.")
    for position, rule in enumerate(rules):
        if not isinstance(rule, Rule):
            raise TypeError(f"rule {position} of the list is {rule!r}, not a Rule.")
    defaults = {field.name: field.default for field in dataclasses.fields(Rule)}
    for name, value in fields.items():
        value = as_score(value) if name == "score" else value
        if not is_traced(value) and bool(value != defaults[name]):
            raise ValueError(
                f"{name} is {value!r} beside a list of rules; write it in the rules: "
                f"Rule(schedule, {name}={value!r})."
            )
    return rules


def _check_schedule(schedule: Any) -> None:
    """Refuses all but a SparsitySchedule and None."""
    if schedule is None or isinstance(schedule, SparsitySchedule):
        return
    raise TypeError(
        f"the schedule is {schedule!r}; it must be a SparsitySchedule, such as "
        "polynomial_schedule(0.9, begin_step=1_000, end_step=10_000), or None."
    )


def _check_where(where: Any) -> None:
    """Refuses all but a valid regular expression, a callable and None."""
    if isinstance(where, str):
        try:
            re.compile(where)
        except re.error as error:
            raise ValueError(
                f"where is {where!r}, which is no regular expression: {error}."
            ) from None
    elif where is not None and not callable(where):
        raise ValueError(
            f"where is {where!r}; it must be a regular expression, a callable (path, "
            "leaf) -> bool, or None. Under optax.inject_hyperparams a callable needs "
            "static_args='where'."
        )


def _check_structure(structure: Any) -> None:
    """Refuses what is no structure, a string such as 2:4 among others."""
    if structure is not None and not isinstance(structure, Structure):
        raise ValueError(
            f"structure is {structure!r}; it must be Unstructured(), NM(...), "
            "Block(...), Channel(...), CoupledChannels(...), or None."
        )
