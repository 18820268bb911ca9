"""Pruning once, with the inputs that reach each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax._calibration.method import CalibratedMethod, Target
from gradprune_jax._calibration.targets import axes_of, rules_of, targets_of
from gradprune_jax._calibration.walk import Walk, as_batches
from gradprune_jax._calibration.wanda import Wanda
from gradprune_jax._calibration.weights import Weights
from gradprune_jax._rules import ScheduleOrRules, Where
from gradprune_jax._structures import Structure
from gradprune_jax._tree import check_arrays, check_values, named_leaves


def prune_calibrated(
    fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    schedule_or_rules_or_sparsity: ScheduleOrRules | float,
    *,
    method: CalibratedMethod | None = None,
    where: Where | None = None,
    structure: Structure | None = None,
    progress: bool = False,
) -> tuple[Any, Any]:
    r"""Prunes parameters at once with calibration inputs, without training.

    The function is traced and evaluated once, in order, over all batches. At each
    product or convolution that reads a weight, the weight is pruned with the inputs
    that reach it there, and the evaluation goes on with the pruned one:

    $$
    w_l' = \mathrm{prune}(w_l, X_l), \qquad X_l = f_{<l}(w_1', \dots, w_{l-1}'; x)
    $$

    So later layers see what earlier ones make of their inputs after pruning. Weights
    stacked for a `scan` (`nn.scan`, `nnx.scan`) are pruned layer by layer. Weights that
    all turns of a `scan` read, as in a recurrent network, are pruned with the inputs of
    all turns.

    Args:
      fn: maps the parameters and one batch to outputs, whichever they are. Nothing
        random belongs in it, and batch norm should use its stored statistics.
      params: the parameters, plain or boxed.
      batches: some batches of inputs, each as `fn` takes it: an array, a tree of
        arrays, or a tuple where `fn` takes several. A few hundred samples together are
        usual.
      schedule_or_rules_or_sparsity: the fraction of zeros in [0, 1], or a schedule, of
        which the highest sparsity counts, or a rule or a list of them. Allocation is
        `"uniform"` or `"erk"`.
      method: `Wanda()`, the default, or `SparseGPT()`, or a `CalibratedMethod` of your
        own.
      where: which parameters to prune, see `Rule`.
      structure: `Unstructured()`, which None stands for, or `NM`, whose groups must lie
        along inputs.
      progress: whether to show a progress bar, which needs rich.

    Returns:
      The pruned parameters, in their dtypes, and the masks as `prune` returns them:
      they start a training with `set_masks`.

    Raises:
      ValueError: if an argument is not valid, or a selected parameter is not read by
        exactly one product with inputs; the error names it and says what reads it.
      ImportError: if `progress` is set and rich is not installed.

    Examples:
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
      >>> params = {"w1": jnp.eye(2) + 0.5, "w2": jnp.array([[1.0], [2.0]])}
      >>> batches = [jnp.array([[1.0, 10.0]]), jnp.array([[2.0, -20.0]])]
      >>> params, masks = prune_calibrated(fn, params, batches, 0.5, where="w.")
      >>> print(params["w1"])  # the second input is ten times larger
      [[0.  0. ]
       [0.5 1.5]]

    References:
      Sun et al., [Wanda](https://arxiv.org/abs/2306.11695), 2023; Frantar and Alistarh,
      [SparseGPT](https://arxiv.org/abs/2301.00774), 2023.
    """
    method = _check_method(method)
    leaves = named_leaves(params)
    check_arrays(leaves)
    check_values(leaves, "prune_calibrated")
    given = as_batches(batches, "prune_calibrated")
    rules = rules_of(schedule_or_rules_or_sparsity, where=where, structure=structure)
    targets = targets_of(rules, leaves)
    weights = Weights({i: jnp.asarray(leaves[i].value) for i in targets})
    walk = Walk(
        weights,
        {i: target.name for i, target in targets.items()},
        method.statistic,
        lambda product: axes_of(product, targets[product.view.leaf]),
    )
    for visit in walk.visits(fn, params, given, progress):
        target = targets[visit.product.view.leaf]
        matrix = weights.matrix(*visit.place)
        statistic = _beside(visit.statistic, matrix)
        pruned, mask = method.prune(matrix, statistic, target)
        _check_pruned(method, target, matrix, pruned, mask)
        weights.replace(*visit.place, jnp.where(mask, pruned, 0))
        weights.note(*visit.place, mask)
    new, masks = weights.new(), weights.found()
    treedef: Any = jax.tree.structure(params)
    values = [
        _as_given(leaf.value, new[i], masks[i]) if i in new else leaf.value
        for i, leaf in enumerate(leaves)
    ]
    kept = [masks.get(i, optax.MaskedNode()) for i in range(len(leaves))]
    return treedef.unflatten(values), treedef.unflatten(kept)


def _check_method(method: Any) -> CalibratedMethod:
    """Refuses what has not the two functions of a method."""
    method = Wanda() if method is None else method
    if isinstance(method, type) or not isinstance(method, CalibratedMethod):
        raise ValueError(
            f"method is {method!r}; it must be Wanda(), SparseGPT(), or a "
            "CalibratedMethod of your own."
        )
    return method


def _beside(statistic: jax.Array, matrix: jax.Array) -> jax.Array:
    """A statistic on the devices of the weights, which may be others in a pipeline."""
    if statistic.sharding.device_set == matrix.sharding.device_set:
        return statistic
    return jnp.asarray(np.asarray(statistic))


def _check_pruned(
    method: CalibratedMethod, target: Target, matrix: jax.Array, pruned: Any, mask: Any
) -> None:
    """Refuses what a method returns in another shape, or a mask that is none."""
    for what, found in (("matrix", pruned), ("mask", mask)):
        if np.shape(found) != matrix.shape:
            raise ValueError(
                f"{method!r} returned a {what} of shape {np.shape(found)} for "
                f"{target.name!r}; it must be {matrix.shape}."
            )
    if mask.dtype != bool:
        raise ValueError(
            f"{method!r} returned a mask of {mask.dtype} for {target.name!r}; it must "
            "be bool, True where a weight is kept."
        )


def _as_given(leaf: Any, new: jax.Array, mask: jax.Array) -> Any:
    """New weights in a dtype of NumPy's that JAX would narrow, such as float64.

    Weights that are not changed keep all their digits.
    """
    if not isinstance(leaf, np.ndarray) or new.dtype == leaf.dtype:
        return new
    host = np.asarray(new)
    unchanged = host == leaf.astype(host.dtype)
    kept = np.where(unchanged, leaf, host.astype(leaf.dtype))
    return np.where(np.asarray(mask), kept, np.zeros_like(leaf))
