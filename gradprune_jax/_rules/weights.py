"""Weights: which leaves of a model are weight matrices, by the names of libraries."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax import _tree

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

    `plan` lists the other leaves of two or more axes.

    Args:
      path: the keys that lead to the leaf. Numbers in it, which are positions in a
        list, are ignored.
      leaf: anything with a `shape` and a `dtype`.

    Returns:
      True for floating leaves of two or more axes with such a name.

    Examples:
      >>> leaf = jax.ShapeDtypeStruct((8, 4), jnp.float32)
      >>> is_weight(("Dense_0", "kernel"), leaf), is_weight(("Dense_0", "bias"), leaf)
      (True, False)
    """
    if not is_matrix(leaf):
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


def is_matrix(leaf: Any) -> bool:
    """Whether a leaf is floating and has two axes or more, as weight matrices do."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return False
    return len(leaf.shape) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
