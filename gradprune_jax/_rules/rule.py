"""Rules: which parameters are pruned, on which schedule, in which pattern."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import (
    as_decimal,
    check_axis,
    check_fraction,
    check_integer,
    check_schedule,
    check_structure,
    check_where,
    is_traced,
)
from gradprune_jax._rules.fit import check_pattern, check_prunable
from gradprune_jax._rules.weights import WEIGHT_NAMES, is_weight
from gradprune_jax._structures import NM, Structure

if TYPE_CHECKING:
    from gradprune_jax._schedules import SparsitySchedule

Where = str | Callable[[_tree.Path, jax.ShapeDtypeStruct], bool]
Allocation = Literal["uniform", "global", "erk"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Prunes the parameters that `where` selects.

    Attributes:
      schedule: when and how sparse; None leaves the selected parameters dense.
      where: a regular expression that matches the whole path (keys joined by `/`), or
        a callable `(path, leaf) -> bool` that gets the keys as a tuple of strings
        and the leaf's shape and dtype. None is `is_weight`.
      structure: which weights are kept or dropped together: `Unstructured()`, which
        None stands for, `NM`, `Block` or `Channel`.
      allocation: how sparse each leaf is. `"uniform"`: every leaf at the schedule's
        sparsity, as in the paper. `"global"`: one threshold over all leaves of the
        rule. `"erk"`: Erdos-Renyi-kernel densities, higher for small and for narrow
        leaves, with the schedule's final sparsity over all of them together; with a
        traced sparsity each leaf may keep one unit more or less than with the number.
        N:M has a sparsity of its own, and is uniform always.
      stack_axis: the axis along which layers are stacked (`nn.scan`, `nnx.vmap`).
        Each slice is pruned as if it were alone, in shape, structure, and, unless
        the allocation is global, with a threshold of its own. It holds for every
        leaf of the rule: stacked and other leaves need a rule each.
      min_density: under global allocation, the fraction of every leaf that is kept at
        least, in [0, 1], so that no layer collapses. May be a tracer.
      min_per_channel: the weights that stay at least in every slice along the output
        axis, whatever the allocation; a slice that has fewer keeps them all. No filter
        dies then, which layers need that divide a kernel by its own deviation or norm
        (weight standardisation, WeightNorm). May be a tracer, which is not checked
        against the structure.
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
    output_axis: int | None = None

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        check_where(self.where)
        check_structure(self.structure)
        if self.allocation not in get_args(Allocation):
            raise ValueError(
                f"allocation is {self.allocation!r}; it must be one of "
                f"{get_args(Allocation)}."
            )
        for name in ("stack_axis", "output_axis"):
            object.__setattr__(self, name, check_axis(name, getattr(self, name)))
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
        if self.schedule is not None:
            final = self.schedule.final_sparsity
            check_pattern("the schedule's final_sparsity", final, self.structure)
        if self.allocation != "global" and _is_nonzero(self.min_density):
            raise ValueError(
                f"min_density is {self.min_density!r} with allocation="
                f"{self.allocation!r}; it is a floor under allocation='global' alone."
            )
        least = check_integer("min_per_channel", self.min_per_channel, minimum=0)
        object.__setattr__(self, "min_per_channel", least)
        if self.output_axis is not None and _is_zero(least):
            raise ValueError(
                f"output_axis is {self.output_axis} with min_per_channel=0; it says "
                "along which axis min_per_channel counts, so give both or neither."
            )

    def matches(self, path: _tree.Path, leaf: jax.ShapeDtypeStruct) -> bool:
        """Whether the rule selects this leaf, whatever the rules before it do."""
        match self.where:
            case None:
                return is_weight(path, leaf)
            case str(pattern):
                return re.fullmatch(pattern, _tree.join(path)) is not None
            case predicate:
                return bool(predicate(path, leaf))

    def selects(self, leaf: _tree.Leaf) -> bool:
        """Whether the rule matches a leaf of a tree, by its path, shape and dtype."""
        if not _is_array(leaf.value):
            return False  # a Python number or a function is no parameter
        # Rules see shape and dtype alone: values are tracers here, and inside
        # `optax.masked` the same rule is asked about updates in place of parameters.
        spec = jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype)
        # A name that errors and plans print selects its leaf, also if it is no path
        # (`['a']['0']`), or means something else as a regular expression.
        return self.where == leaf.name or self.matches(leaf.path, spec)

    def __str__(self) -> str:
        match self.where:
            case None:
                where = "is_weight"
            case str(pattern):
                where = repr(pattern)
            case predicate:
                where = getattr(predicate, "__name__", repr(predicate))
        return f"where={where}"


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
        if not is_traced(value) and bool(value != defaults[name]):
            raise ValueError(
                f"{name} is {value!r} beside a list of rules; write it in the rules: "
                f"Rule(schedule, {name}={value!r})."
            )
    return rules


def assign(
    rules: Sequence[Rule],
    tree: Any,
    shapes: Sequence[tuple[int, ...]] | None = None,
    *,
    all_match: bool = True,
) -> list[int | None]:
    """The rule of each leaf: the first that matches.

    Args:
      rules: the rules, in order.
      tree: parameters, arrays or their shapes (`jax.eval_shape`).
      shapes: the shapes of whole leaves, where the tree has local pieces of them.
      all_match: whether every rule must match a leaf.

    Returns:
      For each leaf, in the order of `jax.tree.leaves`, the position of the rule that
      prunes it, or None if it stays dense.

    Raises:
      ValueError: if a rule matches no leaf, or a leaf that cannot be pruned.
    """
    leaves = _tree.named_leaves(tree)
    matches = [
        [position for position, rule in enumerate(rules) if rule.selects(leaf)]
        for leaf in leaves
    ]
    winners = [positions[0] if positions else None for positions in matches]
    # optax.tree.map_params calls `init` on a placeholder without leaves.
    for position in range(len(rules) if leaves and all_match else 0):
        if not any(position in positions for positions in matches):
            raise ValueError(_unmatched(position, rules[position], leaves))
    assigned = [
        None if winner is None or rules[winner].schedule is None else winner
        for winner in winners
    ]
    for position, (leaf, winner) in enumerate(zip(leaves, assigned, strict=True)):
        if winner is not None:
            shape = np.shape(leaf.value) if shapes is None else shapes[position]
            check_prunable(leaf.name, leaf.value.dtype, shape, rules[winner])
    return assigned


def selected_leaves(rule: Rule, tree: Any) -> list[int]:
    """The positions of the leaves that one rule prunes, at least one."""
    own = [i for i, owner in enumerate(assign([rule], tree)) if owner is not None]
    if not own:
        raise ValueError(
            f"the parameters have no leaves, so the rule ({rule}) has none."
        )
    return own


def _unmatched(position: int, rule: Rule, leaves: Sequence[_tree.Leaf]) -> str:
    """The error for a rule that matches no leaf, with the paths that were near."""
    number = _in_place_of_array(rule, leaves)
    if number is not None:
        return (
            f"rule {position} ({rule}) matches no parameter. {number.name!r} is a "
            f"Python {type(number.value).__name__} and no array; make numbers, or the "
            "list that holds them, an array: jnp.asarray(...)."
        )
    names = [leaf.name for leaf in leaves]
    match rule.where:
        case None:
            wanted = "kernel"
            reason = (
                "By default floating leaves of two or more axes are pruned that are "
                f"named {', '.join(sorted(WEIGHT_NAMES))}; give where, a regular "
                "expression for the whole path."
            )
        case str(wanted):
            reason = "The regular expression must match the whole path."
        case _:
            wanted = "kernel"
            reason = (
                "It was called with the path, a tuple of strings, and the shape and "
                "dtype of every leaf, and was never true."
            )
    closest = difflib.get_close_matches(wanted, names, n=5, cutoff=0.0)
    return (
        f"rule {position} ({rule}) matches no parameter. {reason} The closest paths "
        f"are: {', '.join(map(repr, closest))}."
    )


def _in_place_of_array(rule: Rule, leaves: Sequence[_tree.Leaf]) -> _tree.Leaf | None:
    """A leaf that is no array, where this is why the rule matches nothing."""
    no_arrays = [leaf for leaf in leaves if not _is_array(leaf.value)]
    if isinstance(rule.where, str):
        for leaf in no_arrays:
            if rule.where == leaf.name or re.fullmatch(rule.where, leaf.name):
                return leaf
        return None
    return no_arrays[0] if len(no_arrays) == len(leaves) else None


def _is_array(value: Any) -> bool:
    """Whether a leaf has the shape and dtype of an array, or of one that will be."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_nonzero(value: Any) -> bool:
    """Whether a number is known now and is not zero."""
    return not is_traced(value) and bool(value != 0)


def _is_zero(value: Any) -> bool:
    """Whether a number is known now and is zero."""
    return not is_traced(value) and bool(value == 0)
