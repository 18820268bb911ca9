"""Matching: the rule of each leaf, and the leaves that no rule matches."""

from __future__ import annotations

import difflib
import math
import re
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._rules.fit import check_prunable
from gradprune_jax._rules.rule import Rule
from gradprune_jax._rules.weights import WEIGHT_NAMES, is_matrix, is_weight
from gradprune_jax._structures import CoupledChannels
from gradprune_jax._tables import share, some_of

# What a user's call of `init` passes through. `skip_file_prefixes` of Python 3.12 would
# need the folders of these.
_LIBRARIES = frozenset({"gradprune_jax", "optax", "jax", "flax", "contextlib"})


def selects(rule: Rule, leaf: _tree.Leaf) -> bool:
    """Whether a rule matches a leaf, whatever the rules before it do.

    Rules see shape and dtype alone: values are tracers here, and inside `optax.masked`
    the same rule is asked about updates in place of parameters.
    """
    if not _is_array(leaf.value):
        return False  # a Python number or a function is no parameter
    spec = jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype)
    if isinstance(rule.structure, CoupledChannels):
        if leaf.name not in rule.structure.shapes:
            return False
        if rule.where is None:
            return True
    match rule.where:
        case None:
            return is_weight(leaf.path, spec)
        case str(pattern):
            # A name that errors and plans print selects its leaf, also if it is no path
            # (`['a']['0']`), or means something else as a regular expression.
            return pattern == leaf.name or bool(
                re.fullmatch(pattern, _tree.join(leaf.path))
            )
        case predicate:
            return bool(predicate(leaf.path, spec))


def assign(
    rules: Sequence[Rule],
    leaves: Sequence[_tree.Leaf],
    shapes: Sequence[tuple[int, ...]] | None = None,
    *,
    all_match: bool = True,
) -> list[int | None]:
    """The rule of each leaf: the first that matches.

    Args:
      rules: the rules, in order.
      leaves: the leaves of parameters: arrays, or their shapes (`jax.eval_shape`).
      shapes: the shapes of whole leaves, where these are local pieces of them.
      all_match: whether every rule must match a leaf.

    Returns:
      For each leaf the position of the rule that prunes it, or None if it stays dense.

    Raises:
      ValueError: if a rule matches no leaf, or a leaf that cannot be pruned.
    """
    matches = [
        [position for position, rule in enumerate(rules) if selects(rule, leaf)]
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
    if all_match:
        _check_members(rules, leaves, assigned)
    for position, (leaf, winner) in enumerate(zip(leaves, assigned, strict=True)):
        if winner is not None:
            shape = np.shape(leaf.value) if shapes is None else shapes[position]
            check_prunable(leaf.name, leaf.value.dtype, shape, rules[winner])
    return assigned


def selected_leaves(rule: Rule, tree: Any) -> list[int]:
    """The positions of the leaves that one rule prunes; none is an error."""
    assigned = assign([rule], _tree.named_leaves(tree))
    own = [i for i, owner in enumerate(assigned) if owner is not None]
    if not own:
        raise ValueError(
            f"the parameters have no leaves, so the rule ({rule}) has none."
        )
    return own


def unmatched_matrices(
    rules: Sequence[Rule], leaves: Sequence[_tree.Leaf]
) -> list[_tree.Leaf]:
    """The floating leaves of two axes or more that no rule matches.

    They stay dense although no rule says so: a rule without a schedule matches what
    it leaves dense.

    Args:
      rules: the rules.
      leaves: those of parameters, arrays or their shapes.

    Returns:
      The leaves, the largest first.
    """
    found = [
        leaf
        for leaf in leaves
        if is_matrix(leaf.value) and not any(selects(rule, leaf) for rule in rules)
    ]
    return sorted(found, key=_size, reverse=True)


def warn_of_dense_weights(
    rules: Sequence[Rule],
    leaves: Sequence[_tree.Leaf],
    assigned: Sequence[int | None],
) -> None:
    """Warns where the default rule leaves most of a model dense.

    Args:
      rules: the rules.
      leaves: those of parameters; only shapes and dtypes are read.
      assigned: for each leaf the position of the rule that prunes it, as from
        `assign`.
    """
    if not any(
        rule.where is None
        and rule.schedule is not None
        and not isinstance(rule.structure, CoupledChannels)
        for rule in rules
    ):
        return
    missed = unmatched_matrices(rules, leaves)
    dense = sum(map(_size, missed))
    pruned = sum(
        _size(leaf)
        for leaf, position in zip(leaves, assigned, strict=True)
        if position is not None and is_matrix(leaf.value)
    )
    if dense <= pruned:
        return
    warnings.warn(
        f"the default rule leaves {share(dense, dense + pruned)} of the weights dense "
        "(of those in leaves of two axes or more that no rule keeps dense), because it "
        "does not know their names: "
        f"{some_of([leaf.name for leaf in missed])}. Give where, a regular expression "
        "for the paths of what is to be pruned; a rule before it, Rule(None, "
        "where=...), says what is to stay dense.",
        stacklevel=_level_of_user(),
    )


def _check_members(
    rules: Sequence[Rule],
    leaves: Sequence[_tree.Leaf],
    assigned: Sequence[int | None],
) -> None:
    """Refuses a rule of coupled channels that takes some members of a group alone."""
    for position, rule in enumerate(rules):
        if isinstance(rule.structure, CoupledChannels):
            rule.structure.groups_among(
                {
                    leaf.name
                    for leaf, owner in zip(leaves, assigned, strict=True)
                    if owner == position
                }
            )


def _unmatched(position: int, rule: Rule, leaves: Sequence[_tree.Leaf]) -> str:
    """The error for a rule that matches no leaf, with the closest paths."""
    number = _in_place_of_array(rule, leaves)
    if number is not None:
        return (
            f"rule {position} ({rule}) matches no parameter. {number.name!r} is a "
            f"Python {type(number.value).__name__} and no array; make numbers, or the "
            "list that holds them, an array: jnp.asarray(...)."
        )
    names = [leaf.name for leaf in leaves]
    if isinstance(rule.structure, CoupledChannels):
        members = list(rule.structure.shapes)
        if rule.where is not None and set(members) & set(names):
            return (
                f"rule {position} ({rule}) matches no parameter. Its groups have "
                f"{some_of(members)}, of which its where selects none; leave where "
                "out to prune all of them."
            )
        return (
            f"rule {position} ({rule}) matches no parameter. Its groups have "
            f"{some_of(members)}, the parameters are "
            f"{some_of(names)}. Call channel_groups(fn, params, *inputs) with the tree "
            "of parameters that is pruned, and let fn close over all others."
        )
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
    """The leaf that the rule would match if it were an array; None if there is none."""
    no_arrays = [leaf for leaf in leaves if not _is_array(leaf.value)]
    if isinstance(rule.where, str):
        for leaf in no_arrays:
            if rule.where == leaf.name or re.fullmatch(rule.where, leaf.name):
                return leaf
        return None
    return no_arrays[0] if len(no_arrays) == len(leaves) else None


def _level_of_user() -> int:
    """The `stacklevel` of the first frame that is no library's, for its caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and _package(frame) in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: types.FrameType) -> str:
    """The package whose code runs in a frame."""
    return frame.f_globals.get("__name__", "").partition(".")[0]


def _is_array(value: Any) -> bool:
    """Whether a leaf has the shape and dtype of an array, or of one that will be."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _size(leaf: _tree.Leaf) -> int:
    return math.prod(leaf.value.shape)
