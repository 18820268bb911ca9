"""Variables of Keras: their names, and which of them rules prune by default."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

import gradprune_jax as gp

# The names of layers with depthwise kernels: Keras' own, and those of its applications.
_DEPTHWISE = re.compile(r"(.*_)?(depthwise|dwconv|conv_dw|dw)(_.*|\d*)")


def named(variables: Sequence[Any]) -> collections.OrderedDict[str, Any]:
    """The variables by their paths, in their order.

    In their order, because Keras loads optimizers by position: the names of layers
    change from one session to the next, and with them the order of the names. Of two
    variables of one path, as nested models may have them, the second gets a number.

    Examples:
      >>> import keras
      >>> kernels = [keras.Variable([[1.0]], name="kernel") for _ in range(2)]
      >>> list(named(kernels))
      ['kernel', 'kernel_2']
    """
    found: collections.OrderedDict[str, Any] = collections.OrderedDict()
    for variable in variables:
        path, number = variable.path, 1
        while path in found:
            number += 1
            path = f"{variable.path}_{number}"
        found[path] = variable
    return found


def values_of(variables: Sequence[Any]) -> collections.OrderedDict[str, Any]:
    """The values of variables by their paths, in their order.

    Examples:
      >>> import keras
      >>> print(values_of([keras.Variable([[1.0]], name="kernel")])["kernel"])
      [[1.]]
    """
    own = named(variables).items()
    return collections.OrderedDict((path, each.value) for path, each in own)


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
