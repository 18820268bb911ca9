"""Pruning once, with the inputs that reach each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradprune_jax._calibration.method import CalibratedMethod, Target
from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.views import Axes
from gradprune_jax._calibration.walk import Walk, as_batches, check_arrays
from gradprune_jax._calibration.wanda import Wanda
from gradprune_jax._calibration.weights import Weights
from gradprune_jax._checks import (
    as_number,
    check_sparsity,
    is_traced,
    may_be_nonzero,
)
from gradprune_jax._mask_update import kept_in_the_end, slices_of_leaf
from gradprune_jax._rules import Rule, ScheduleOrRules, Where, as_rules, assign
from gradprune_jax._schedules import extremes, is_concrete, one_shot_schedule
from gradprune_jax._structures import NM, Structure, Unstructured
from gradprune_jax._tree import Leaf, named_leaves


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
      batches: some batches of inputs, each as `fn` takes it: an array or a tree of
        arrays. A few hundred samples together are usual.
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
    rules = _as_rules(schedule_or_rules_or_sparsity, where=where, structure=structure)
    leaves = named_leaves(params)
    check_arrays(leaves, "prune_calibrated")
    assigned = assign(rules, leaves)
    targets: dict[int, Target] = {}
    pattern_axes: dict[int, int | None] = {}
    for position, rule in enumerate(rules):
        own = [i for i, winner in enumerate(assigned) if winner == position]
        targets |= _targets_of(rule, leaves, own)
        pattern_axes |= {i: _pattern_axis(rule, leaves[i]) for i in own}
    if not targets:
        raise ValueError("every rule leaves its parameters dense: none has a schedule.")

    def axes_of(product: Product) -> Axes:
        axis = pattern_axes[product.view.leaf]
        _check_pattern_axis(product, axis, targets[product.view.leaf])
        return product.axes(axis)

    weights = Weights({i: jnp.asarray(leaves[i].value) for i in targets})
    names = {i: target.name for i, target in targets.items()}
    walk = Walk(weights, names, method.statistic, axes_of)
    given = as_batches(batches, "prune_calibrated")
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


def _as_rules(given: Any, **fields: Any) -> tuple[Rule, ...]:
    """The rules that a user wrote as a sparsity, a schedule, or rules."""
    if is_traced(given):
        raise ValueError("the sparsity is traced; call prune_calibrated outside jit.")
    if as_number(given) is not None:
        given = one_shot_schedule(check_sparsity("sparsity", given), 0)
    rules = as_rules(given, **fields)
    for rule in rules:
        _check_rule(rule)
    return rules


def _check_rule(rule: Rule) -> None:
    """Refuses what a rule may say of pruning without inputs alone."""
    if not isinstance(rule.structure or Unstructured(), Unstructured | NM):
        raise ValueError(
            f"structure is {rule.structure!r} ({rule}); with inputs weights are pruned "
            "unstructured or in groups of NM."
        )
    if rule.allocation == "global":
        raise ValueError(
            f"allocation is 'global' ({rule}), which compares weights that are pruned "
            "one after the other; give 'uniform' or 'erk'."
        )
    if rule.score is not None:
        raise ValueError(
            f"score is {rule.score!r} ({rule}); with inputs the method ranks weights. "
            "Leave it out, or use prune with a score of input_norms."
        )
    if may_be_nonzero(rule.min_per_channel):
        raise ValueError(
            f"min_per_channel is {rule.min_per_channel!r} ({rule}), a floor that no "
            "method keeps; leave it out. Wanda keeps as many weights of every output."
        )
    if rule.schedule is not None and not is_concrete(rule.schedule):
        raise ValueError(
            f"the schedule of the rule ({rule}) is traced; call prune_calibrated "
            "outside jit."
        )


def _check_method(method: Any) -> CalibratedMethod:
    """Refuses what has not the two functions of a method."""
    method = Wanda() if method is None else method
    if isinstance(method, type) or not isinstance(method, CalibratedMethod):
        raise ValueError(
            f"method is {method!r}; it must be Wanda(), SparseGPT(), or a "
            "CalibratedMethod of your own."
        )
    return method


def _targets_of(
    rule: Rule, leaves: Sequence[Leaf], own: Sequence[int]
) -> dict[int, Target]:
    """How sparse one rule makes each of its leaves."""
    if rule.schedule is None or not own:
        return {}
    sparsities = [max(sparsity for sparsity, _ in extremes(rule.schedule))] * len(own)
    if rule.allocation == "erk":
        slices = [slices_of_leaf(rule, leaves[i].value.shape) for i in own]
        kept = iter(kept_in_the_end(rule, [each for leaf in slices for each in leaf]))
        sparsities = [
            np.float32(
                1 - sum(next(kept) for _ in leaf) / max(sum(e.units for e in leaf), 1)
            )
            for leaf in slices
        ]
    pattern = rule.structure if isinstance(rule.structure, NM) else None
    return {
        i: Target(leaves[i].name, float(sparsity), pattern)
        for i, sparsity in zip(own, sparsities, strict=True)
    }


def _pattern_axis(rule: Rule, leaf: Leaf) -> int | None:
    """The axis of a leaf along which the groups of N:M lie; None without N:M."""
    if not isinstance(rule.structure, NM):
        return None
    axes = [*range(len(leaf.value.shape))]
    if rule.stack_axis is not None:
        axes.remove(axes[rule.stack_axis])
    return axes[rule.structure.axis]


def _check_pattern_axis(product: Product, axis: int | None, target: Target) -> None:
    """Refuses groups of N:M that do not lie along inputs."""
    if axis is not None and axis not in product.input_axes:
        axes = " and ".join(map(str, product.input_axes))
        raise ValueError(
            f"the groups of {target.pattern!r} lie along axis {axis} of "
            f"{target.name!r}, whose inputs lie along axis {axes} ({product.name}); "
            "give NM that axis."
        )
