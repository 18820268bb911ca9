"""Names and axes as PyTorch has them, for libraries that read its models."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradprune_jax._files.safetensors import Spec, StoredArray

_WEIGHTS = ("kernel", "embedding", "scale")

# Of Flax's attention; other kernels of three axes are those of 1-D convolutions.
_ATTENTION = (["query"], ["key"], ["value"], ["out"])


def as_torch(arrays: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """Arrays under PyTorch's names, with the axes in PyTorch's order.

    `Dense_0/kernel` of shape (in, out) becomes `Dense_0.weight` of shape (out, in),
    kernels of convolutions go from HWIO to OIHW, `embedding` and `scale` become
    `weight`.

    Args:
      arrays: by paths, keys joined by `/`.

    Returns:
      The arrays, to be turned when they are read.

    Raises:
      ValueError: if two arrays would have one name, or a kernel is attention's.
    """
    turned: dict[str, StoredArray] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        new = ".".join((*above, "weight" if last in _WEIGHTS else last))
        if new in turned:
            raise ValueError(f"{name!r} and another array would both be {new!r}.")
        shape = array.spec.shape
        if last == "kernel" and len(shape) == 3 and above[-1:] in _ATTENTION:
            raise ValueError(
                f"{name!r} of shape {shape} has heads, which no weight of PyTorch has; "
                "reshape it to (in, out)."
            )
        if last == "kernel" and len(shape) >= 2:
            array = StoredArray(
                Spec((shape[-1], shape[-2], *shape[:-2]), array.spec.dtype),
                functools.partial(_read_turned, array),
            )
        turned[new] = array
    return turned


def config(weights: int, nonzero: int, sparse: Sequence[str]) -> dict[str, Any]:
    """What compressed-tensors reads of a model's `config.json`."""
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "sparsity_config": {
                "format": "sparse-bitmask",
                "global_sparsity": 1 - nonzero / max(weights, 1),
                "sparsity_structure": "unstructured",
                "targets": list(sparse),
                "ignore": [],
            },
        }
    }


def _read_turned(array: StoredArray) -> np.ndarray:
    """A kernel (..., in, out) as (out, in, ...)."""
    return np.ascontiguousarray(np.moveaxis(array.read(), (-1, -2), (0, 1)))
