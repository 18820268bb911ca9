"""Variables of Keras: their names, and which of them rules prune by default."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

import gradprune_jax as gp

# The names of layers with depthwise kernels: Keras' own, and those of its applications.
_DEPTHWISE = re.compile(r"(.*_)?(depthwise|dwconv|conv_dw|dw)(_.*|\d*)")


def named(variables: Sequence[Any]) -> dict[str, Any]:
    """The variables by their paths.

    Raises:
      ValueError: if two have the same path.

    Examples:
      >>> import keras
      >>> kernel = keras.Variable([[1.0]], name="kernel")
      >>> list(named([kernel]))
      ['kernel']
    """
    found: dict[str, Any] = {}
    for variable in variables:
        if variable.path in found:
            raise ValueError(
                f"two variables have the path {variable.path!r}; give their layers "
                "names of their own."
            )
        found[variable.path] = variable
    return found


def as_rules(schedule_or_rules: Any, **fields: Any) -> list[gp.Rule]:
    """Rules of a schedule or of rules, as all links take them.

    Raises:
      ValueError: if rules are given, and a field besides.
    """
    if isinstance(schedule_or_rules, gp.SparsitySchedule):
        return [gp.Rule(schedule_or_rules, **fields)]
    for name, value in fields.items():
        if value not in (None, 0, "uniform"):
            raise ValueError(f"{name} is a field of a rule; set it in the rules.")
    rules = schedule_or_rules
    return [rules] if isinstance(rules, gp.Rule) else list(rules)


def with_default(rules: Sequence[gp.Rule]) -> list[gp.Rule]:
    """Rules in which `is_weight` of Keras stands in place of no `where`."""
    return [
        dataclasses.replace(rule, where=is_weight) if rule.where is None else rule
        for rule in rules
    ]


def is_weight(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a variable is a weight, and no kernel of a depthwise layer.

    `DepthwiseConv2D` calls its weight `kernel` too, so the name of the layer decides.

    Args:
      path: the keys that lead to the variable; one key may be the whole path.
      leaf: anything with a `shape` and a `dtype`.

    Examples:
      >>> leaf = jax.ShapeDtypeStruct((3, 3, 8, 1), "float32")
      >>> is_weight(("conv2d/kernel",), leaf), is_weight(("conv_dw_1/kernel",), leaf)
      (True, False)
    """
    *layers, _ = ("", *"/".join(path).split("/"))
    return gp.is_weight(path, leaf) and not _DEPTHWISE.fullmatch(layers[-1])
