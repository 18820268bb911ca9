"""Weights: which leaves of a model are weight matrices, by the names of libraries."""

from __future__ import annotations

import math
import re
import sys
import types
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gradprune_jax import _tree

if TYPE_CHECKING:
    from gradprune_jax._rules.rule import Rule

# The names of matrices, kernels and embeddings, and where each library gives them.
# Depthwise kernels stay out where they have a name of their own (`depthwise_kernel`),
# and so do biases, scales, tables of positions and the factors of LoRA.
WEIGHT_NAMES = frozenset(
    {
        # flax/linen/linear.py, flax/nnx/nn/linear.py; keras/src/layers/core/dense.py
        "kernel",
        "embedding",
        # haiku/_src/basic.py, embed.py, recurrent.py (GRU)
        "w",
        "embeddings",
        "w_i",
        "w_h",
        # equinox/nn/_linear.py, _conv.py, _embedding.py, _rnn.py; haliax/nn/linear.py
        "weight",
        "weight_ih",
        "weight_hh",
        # keras/src/layers/rnn/lstm.py, convolutional/base_separable_conv.py,
        # core/reversible_embedding.py
        "recurrent_kernel",
        "pointwise_kernel",
        "reverse_embeddings",
        # gemma/gm/nn/_modules.py, gemma3n/_modules.py; tunix/models/gemma4/moe.py
        "gating_einsum",
        "linear",
        "input_embedding",
        "per_layer_input_embedding",
        "router_logits",
        # tunix/models/qwen3/model.py, experts
        "gate_proj",
        "up_proj",
        "down_proj",
        # MaxText/layers/moe.py, experts
        "wi",
        "wi_0",
        "wi_1",
        "wo",
    }
)

# Equinox and haliax call the scale of a norm `weight`, which layers stacked by
# `filter_vmap` or `Stacked` give two axes: there the name of the layer decides.
# `norm` ends a word there: `input_layernorm`, `RMSNorm_0`, but not `normal_proj`.
_NORMS = re.compile(r".*(?i:norm(ali[sz]ation|s)?)(?![a-z]).*|(?i:(ln|bn)_?[0-9a-z]?)")


# What a user's call of `init` passes through. `skip_file_prefixes` of Python 3.12 would
# need the folders of these.
_LIBRARIES = frozenset({"gradprune_jax", "optax", "jax", "flax", "contextlib"})


def is_weight(path: _tree.Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is a weight matrix or kernel: what rules prune by default.

    The name decides, not the number of axes alone: the biases of multi-head attention
    have two axes, and so have the scales of layers stacked by `nn.scan`. Known are
    the names that libraries give:

    - Flax: `kernel`, `embedding`
    - Haiku: `w`, `embeddings`, `w_i`, `w_h`
    - Equinox, haliax: `weight` (but in a layer whose name is that of a norm),
      `weight_ih`, `weight_hh`
    - Keras: `kernel`, `recurrent_kernel`, `pointwise_kernel`, `embeddings`,
      `reverse_embeddings`
    - Gemma: `w`, `gating_einsum`, `linear`, `input_embedding`,
      `per_layer_input_embedding`
    - tunix, experts: `gate_proj`, `up_proj`, `down_proj`, `router_logits`
    - MaxText, experts: `wi`, `wi_0`, `wi_1`, `wo`

    `plan` shows what else of two or more axes a model has.

    Args:
      path: the keys that lead to the leaf. Numbers, places in a list, have no part in
        the names.
      leaf: anything with a `shape` and a `dtype`.

    Returns:
      True for floating leaves of two or more axes with such a name.

    Examples:
      >>> leaf = jax.ShapeDtypeStruct((8, 4), jnp.float32)
      >>> is_weight(("Dense_0", "kernel"), leaf), is_weight(("Dense_0", "bias"), leaf)
      (True, False)
    """
    if not _is_matrix(leaf):
        return False
    # A key may hold a whole path (`dense/kernel` in Keras).
    *layers, name = _names(_tree.join(path))
    is_scale = name == "weight" and layers and _NORMS.fullmatch(layers[-1])
    return name in WEIGHT_NAMES and not is_scale


def last_name(path: str) -> str:
    """The name of a leaf, without numbers after it, which are places in a list.

    Examples:
      >>> last_name("mlp/linear/weight/0")
      'weight'
    """
    return _names(path)[-1]


def _names(path: str) -> list[str]:
    """The keys of a printed path that are no numbers, at least one."""
    return [key for key in path.split("/") if not key.isdecimal()] or [""]


def unmatched_matrices(rules: Sequence[Rule], tree: Any) -> list[_tree.Leaf]:
    """The floating leaves of two axes or more that no rule matches.

    They stay dense, and nobody said so: a rule without a schedule matches what it
    leaves dense.

    Args:
      rules: the rules.
      tree: parameters, arrays or their shapes.

    Returns:
      The leaves, the largest first.
    """
    found = [
        leaf
        for leaf in _tree.named_leaves(tree)
        if _is_matrix(leaf.value) and not any(rule.selects(leaf) for rule in rules)
    ]
    return sorted(found, key=_size, reverse=True)


def warn_of_dense_weights(
    rules: Sequence[Rule], tree: Any, assigned: Sequence[int | None]
) -> None:
    """Warns where the default rule leaves most of a model dense.

    Args:
      rules: the rules.
      tree: parameters, of which only shapes and dtypes are read.
      assigned: for each leaf the position of the rule that prunes it, as from
        `assign`.
    """
    if not any(rule.where is None and rule.schedule is not None for rule in rules):
        return
    missed = unmatched_matrices(rules, tree)
    dense = sum(map(_size, missed))
    pruned = sum(
        _size(leaf)
        for leaf, position in zip(_tree.named_leaves(tree), assigned, strict=True)
        if position is not None and _is_matrix(leaf.value)
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


def _level_of_user() -> int:
    """The `stacklevel` of the first frame that is no library's, for its caller."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and _package(frame) in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def _package(frame: types.FrameType) -> str:
    """The package whose code runs in a frame."""
    return frame.f_globals.get("__name__", "").partition(".")[0]


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are.

    Examples:
      >>> some_of(["a/w", "b/w", "c/w"], most=2)
      "'a/w', 'b/w' and 1 more"
    """
    return first_of([*map(repr, names)], most)


def first_of(texts: Sequence[str], most: int = 3) -> str:
    """The first texts, as they are, and how many more there are."""
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def share(part: int, whole: int) -> str:
    """A share in per cent; only what is nothing is 0 %, only what is all is 100 %.

    Examples:
      >>> share(2, 3), share(1, 10_000), share(9_999, 10_000)
      ('66.7 %', 'less than 0.1 %', 'more than 99.9 %')
    """
    percent = 100 * part / max(whole, 1)
    if 0 < percent < 0.1:
        return "less than 0.1 %"
    if 99.9 < percent < 100:
        return "more than 99.9 %"
    return f"{round(percent, 1):g} %"


def _is_matrix(leaf: Any) -> bool:
    """Whether a leaf is floating and has two axes or more, as weight matrices do."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return False
    return len(leaf.shape) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)


def _size(leaf: _tree.Leaf) -> int:
    return math.prod(leaf.value.shape)
