"""The norms of the inputs that reach each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradprune_jax._calibration.walk import Walk, as_batches
from gradprune_jax._calibration.wanda import Wanda
from gradprune_jax._calibration.weights import Weights
from gradprune_jax._rules import Rule, Where, selected_leaves
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._tree import check_arrays, check_values, named_leaves


def input_norms(
    fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    *,
    where: Where | None = None,
    progress: bool = False,
) -> Any:
    r"""The l2 norm of the input that each weight is multiplied by, over all batches.

    $$
    n_{o, i} = \lVert x_i \rVert_2 = \sqrt{\textstyle\sum_n x_{n, i}^2}
    $$

    Nothing is pruned. Use it for a score of your own, ranked by `prune` in any
    structure and allocation.

    Args:
      fn: maps the parameters and one batch to outputs, whichever they are.
      params: the parameters, plain or boxed.
      batches: some batches of inputs, as of `prune_calibrated`.
      where: which parameters, see `Rule`; by default `is_weight`.
      progress: whether to show a progress bar, which needs rich.

    Returns:
      A tree like the parameters: float32 arrays of their shapes, which say the norm of
      the input of each weight, and `optax.MaskedNode()` where a leaf is not selected.

    Raises:
      ValueError: if an argument is not valid, or a selected parameter is not read by
        exactly one product with inputs.
      ImportError: if `progress` is set and rich is not installed.

    Examples:
      >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
      >>> def fn(params, x):
      ...     return x @ params["kernel"] + params["bias"]
      >>> norms = input_norms(fn, params, [jnp.array([[3.0, 0.0], [4.0, 1.0]])])
      >>> print(norms["kernel"])
      [[5. 5. 5.]
       [1. 1. 1.]]
    """
    rule = Rule(one_shot_schedule(0.0, 0), where=where)
    leaves = named_leaves(params)
    check_arrays(leaves)
    check_values(leaves, "input_norms")
    own = selected_leaves(rule, params)
    weights = Weights({i: jnp.asarray(leaves[i].value) for i in own})
    names = {i: leaves[i].name for i in own}
    walk = Walk(weights, names, Wanda().statistic, lambda product: product.axes())
    for visit in walk.visits(fn, params, as_batches(batches, "input_norms"), progress):
        shape = weights.matrix(*visit.place).shape
        norms = jnp.broadcast_to(jnp.sqrt(visit.statistic)[:, None, :], shape)
        weights.note(*visit.place, norms)
    found = weights.found()
    treedef: Any = jax.tree.structure(params)
    return treedef.unflatten(
        [found.get(i, optax.MaskedNode()) for i in range(len(leaves))]
    )
