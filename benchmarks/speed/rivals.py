"""Other ways to a magnitude mask: what users would write, and what PyTorch has."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HAS_TORCH = importlib.util.find_spec("torch") is not None


def numpy_mask(weights: np.ndarray, kept: int) -> np.ndarray:
    """Magnitudes, partition, comparison: one thread, ties as they come."""
    magnitude = np.abs(weights.astype(np.float32, copy=False))
    flat = magnitude.ravel()
    return magnitude >= np.partition(flat, flat.size - kept)[flat.size - kept]


@jax.jit
def argsort_mask(weights: jax.Array, kept: jax.Array) -> jax.Array:
    """The exact mask by a stable sort."""
    order = jnp.argsort(-jnp.abs(weights).ravel(), stable=True)
    rank = jnp.zeros(weights.size, jnp.int32).at[order].set(jnp.arange(weights.size))
    return (rank < kept).reshape(weights.shape)


@functools.partial(jax.jit, static_argnums=1)
def top_k_mask(weights: jax.Array, kept: int) -> jax.Array:
    """The exact mask by `jax.lax.top_k`."""
    _, chosen = jax.lax.top_k(jnp.abs(weights).ravel(), kept)
    mask = jnp.zeros(weights.size, bool).at[chosen].set(True)
    return mask.reshape(weights.shape)


@jax.jit
def one_read(weights: jax.Array) -> jax.Array:
    """The largest weight: the least that any way to a mask must do."""
    return jnp.max(weights)


def torch_pruning(weights: np.ndarray, sparsity: float) -> Callable[[], Any]:
    """`torch.nn.utils.prune.l1_unstructured` on a layer with these weights.

    It is run on the device that JAX uses, and is finished when the call returns.
    """
    import torch
    from torch.nn.utils import prune

    is_on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    layer = torch.nn.Linear(1, 1, bias=False)
    own = torch.from_numpy(weights)
    layer.weight = torch.nn.Parameter(own.cuda() if is_on_gpu else own)

    def run() -> Any:
        prune.l1_unstructured(layer, "weight", amount=sparsity)
        mask = layer.weight_mask
        if is_on_gpu:
            torch.cuda.synchronize()
        del layer._buffers["weight_mask"]
        layer._forward_pre_hooks.clear()
        layer.weight = layer._parameters.pop("weight_orig")
        return mask.detach()

    return run
