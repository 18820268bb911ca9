"""Sparse kernels as arrays of `jax.experimental.sparse`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from gradprune_jax import _tree
from gradprune_jax._checks import check_fraction
from gradprune_jax._rules import is_weight


def to_bcoo(params: Any, *, max_density: float = 0.5) -> Any:
    """Convert sparse kernels to `BCOO` arrays: non-zeros and their indices.

    For products such as `kernel @ x` that you write yourself: Flax layers need dense
    arrays. A sparse product is faster than a dense one only at densities of a few per
    cent, and only on CPUs and GPUs; measure it.

    Args:
      params: parameters, plain or boxed; not traced.
      max_density: the fraction of non-zeros above which a kernel stays as it is.

    Returns:
      The tree with every weight (see `is_weight`) of at most that density as a
      BCOO of exactly its non-zeros; other leaves as they are.

    Raises:
      ValueError: if the parameters are traced, or `max_density` is no fraction.

    Examples:
      >>> kernel = jnp.array([[0.0, 2.0], [0.0, 0.0]])
      >>> sparse_params = to_bcoo({"kernel": kernel, "bias": jnp.ones(2)})
      >>> sparse_params["kernel"]
      BCOO(float32[2, 2], nse=1)
      >>> print(sparse_params["kernel"] @ jnp.ones(2))
      [2. 0.]
    """
    return _map_sparse(_bcoo, params, max_density, most_axes=None)


def to_bcsr(params: Any, *, max_density: float = 0.5) -> Any:
    """Convert sparse matrices to `BCSR` arrays: compressed sparse rows.

    Args:
      params: parameters, plain or boxed; not traced.
      max_density: the fraction of non-zeros above which a kernel stays as it is.

    Returns:
      As `to_bcoo`, with a BCSR for each matrix; kernels of more than two axes
      stay as they are.

    Raises:
      ValueError: if the parameters are traced, or `max_density` is no fraction.

    Examples:
      >>> to_bcsr({"kernel": jnp.array([[0.0, 2.0], [0.0, 0.0]])})["kernel"]
      BCSR(float32[2, 2], nse=1)
    """
    return _map_sparse(_bcsr, params, max_density, most_axes=2)


def _map_sparse(
    convert: Callable[..., Any],
    params: Any,
    max_density: float,
    most_axes: int | None,
) -> Any:
    """Put `convert(array)` in the place of every sparse weight of a tree."""
    check_fraction("max_density", max_density)
    leaves = []
    named = _tree.named_leaves(params)
    # The number of non-zeros is read from them.
    _tree.check_values(named, "a conversion to sparse arrays")
    for leaf in named:
        leaves.append(leaf.value)
        if not hasattr(leaf.value, "shape") or not is_weight(leaf.path, leaf.value):
            continue
        array = np.asarray(leaf.value)
        is_matrix = most_axes is None or array.ndim <= most_axes
        if is_matrix and np.count_nonzero(array) <= max_density * array.size:
            leaves[-1] = convert(array)
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(leaves)


def _bcoo(array: np.ndarray) -> sparse.BCOO:
    """Convert one array; NumPy finds the non-zeros, for XLA rounds denormals to 0."""
    places = np.nonzero(array)
    return sparse.BCOO(
        (jnp.asarray(array[places]), jnp.asarray(np.stack(places, -1), jnp.int32)),
        shape=array.shape,
        indices_sorted=True,
        unique_indices=True,
    )


def _bcsr(array: np.ndarray) -> sparse.BCSR:
    return sparse.BCSR.from_bcoo(_bcoo(array))
