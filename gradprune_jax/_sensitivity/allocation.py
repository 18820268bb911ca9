"""Allocation: a sparsity for each parameter, by the losses that were measured."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._budget import Budget, as_budget
from gradprune_jax._rules import Rule
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._sensitivity.greedy import Choice, choose
from gradprune_jax._sensitivity.losses import Sensitivity, gradients_of, pruned_to
from gradprune_jax._tables import some_of, text_table


@dataclasses.dataclass(frozen=True)
class SparsityAllocation:
    """A sparsity for each parameter; `str` prints them as a table.

    Attributes:
      paths: the parameters.
      sparsities: of each; 0 where it stays dense.
      sizes: the weights of each.
      kept: the weights that each keeps.
      cost: what the whole model then costs, in the unit of the budget.
      budget: what it may cost.
      baseline: the loss without pruning.
      estimate: the loss that is expected: the baseline and the rises of all parameters.
      loss: the loss that was measured with all of them pruned; None if it was not.
      rule: what prunes them, but for its schedule and its `where`.
    """

    paths: tuple[str, ...]
    sparsities: tuple[float, ...]
    sizes: tuple[int, ...]
    kept: tuple[int, ...]
    cost: int
    budget: Budget
    baseline: float
    estimate: float
    loss: float | None
    rule: Rule

    def rules(self, schedule: SparsitySchedule) -> list[Rule]:
        """Rules for `gradual_prune`: the schedule, to the sparsity of each parameter.

        Args:
          schedule: polynomial or one-shot; its final sparsity is replaced.

        Returns:
          One rule for each sparsity. What no rule matches stays dense.

        Raises:
          ValueError: if the schedule is a function, which has its own final sparsity.
        """
        if schedule.fn is not None:
            raise ValueError(
                "schedule is a function, whose final sparsity cannot be replaced; give "
                "a polynomial or one-shot schedule."
            )
        paths: dict[float, list[str]] = {}
        for path, sparsity in zip(self.paths, self.sparsities, strict=True):
            paths.setdefault(sparsity, []).append(re.escape(path))
        return [
            dataclasses.replace(
                self.rule,
                schedule=dataclasses.replace(schedule, final_sparsity=sparsity)
                if sparsity
                else None,
                where="|".join(paths[sparsity]),
            )
            for sparsity in sorted(paths)
        ]

    def __str__(self) -> str:
        rows = [
            [path, f"{100 * sparsity:.4g} %", f"{kept:,}", f"{size:,}"]
            for path, sparsity, kept, size in zip(
                self.paths, self.sparsities, self.kept, self.sizes, strict=True
            )
        ]
        table = text_table(["path", "sparsity", "kept", "of"], rows, left=1)
        measured = "" if self.loss is None else f", {self.loss:.4g} measured"
        return (
            f"{table}\n{self.cost:,} of {self.budget}\n"
            f"loss: {self.baseline:.4g} without pruning, {self.estimate:.4g} "
            f"expected{measured}"
        )


def allocate_sparsity(
    measured: Sensitivity,
    params: Any,
    budget: int | Budget,
    loss_fn: Callable[[Any], jax.Array] | None = None,
) -> SparsityAllocation:
    r"""Chooses the sparsity of each parameter so that the model keeps a budget.

    $$
    \min_s \sum_l (L_{l, s_l} - L) \quad \text{with} \quad
    \sum_l \mathrm{cost}_l(s_l) \leq \mathrm{budget}
    $$

    The sparsities are those that were measured, or none. Rises of the loss are taken to
    add up. Greedy: again and again the parameter is pruned further whose loss rises
    least for what that saves (along the lower convex hull of its choices), until the
    budget is kept; then what was pruned further than needed is given back. Of the rise,
    at most the last step's is lost against the best choice of all.

    Args:
      measured: what `sensitivity` returned.
      params: the parameters that it pruned, or their shapes if there is no `loss_fn`.
      budget: what the model may have, a number of non-zeros or a `Budget`.
      loss_fn: measures the loss with all parameters pruned together, which is what
        counts in the end: rises need not add up.

    Returns:
      The sparsities; `.rules(schedule)` makes rules of them, and
      `gradprune_jax.report.plot_allocation` draws them.

    Raises:
      ValueError: if the budget cannot be kept with the sparsities that were measured,
        or the parameters are others.

    Examples:
      >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[8.0, 9.0]])}
      >>> loss_fn = lambda p: -sum(x.sum() for x in p.values())
      >>> import gradprune_jax as gp
      >>> measured = gp.sensitivity(loss_fn, params, [0.5, 1.0], where=".*")
      >>> print(allocate_sparsity(measured, params, 2, loss_fn))
      path  sparsity  kept  of
      ----  --------  ----  --
      a     100 %        0   2
      b     0 %          2   2
      2 of 2 non-zeros
      loss: -20 without pruning, -17 expected, -17 measured
    """
    budget = as_budget(budget)
    if measured.kept is None or measured.rule is None:
        raise ValueError("measured has no counts; give what sensitivity() returned.")
    leaves = {leaf.name: leaf for leaf in _tree.named_leaves(params)}
    unknown = [path for path in measured.paths if path not in leaves]
    if unknown:
        raise ValueError(
            f"params have no {unknown[0]!r}, which was measured; give the same ones."
        )
    for path, size in zip(measured.paths, measured.sizes or (), strict=False):
        found = math.prod(np.shape(leaves[path].value))
        if found != size:
            raise ValueError(
                f"{path!r} has {found:,} weights, and had {size:,} when it was "
                "measured; give the same parameters."
            )
    dense = sum(
        _cost(budget, leaf.value, math.prod(np.shape(leaf.value)))
        for name, leaf in leaves.items()
        if name not in measured.paths and _is_floating(leaf.value)
    )
    layers = [
        _choices(budget, measured, row, leaves[path].value)
        for row, path in enumerate(measured.paths)
    ]
    least = dense + sum(min(each.cost for each in layer) for layer in layers)
    if least > budget.most:
        lost = [
            path
            for path, losses in zip(measured.paths, measured.losses, strict=True)
            if not np.isfinite(losses).any()
        ]
        raise ValueError(
            f"budget is {budget}, but at the highest sparsities that were measured the "
            f"model still has {least:,}; measure higher ones, or raise the budget."
            + (f" No loss is finite with {some_of(lost)} pruned." if lost else "")
        )
    chosen = choose(layers, budget.most - dense)
    sparsities = tuple(each.sparsity for each in chosen)
    return SparsityAllocation(
        paths=measured.paths,
        sparsities=sparsities,
        sizes=tuple(math.prod(np.shape(leaves[p].value)) for p in measured.paths),
        kept=tuple(each.kept for each in chosen),
        cost=dense + sum(each.cost for each in chosen),
        budget=budget,
        baseline=measured.baseline,
        estimate=measured.baseline + sum(each.rise for each in chosen),
        loss=None
        if loss_fn is None
        else _loss(
            measured.rule,
            dict(zip(measured.paths, sparsities, strict=True)),
            params,
            loss_fn,
        ),
        rule=measured.rule,
    )


def _choices(
    budget: Budget, measured: Sensitivity, row: int, leaf: Any
) -> list[Choice]:
    """What a parameter can be pruned to, first not at all; no loss that is NaN."""
    size = math.prod(np.shape(leaf))
    choices = [Choice(0.0, size, _cost(budget, leaf, size), 0.0)]
    kept: Any = measured.kept
    for column, sparsity in enumerate(measured.sparsities):
        rise = float(measured.losses[row, column]) - measured.baseline
        if math.isfinite(rise):
            count = int(kept[row, column])
            choices.append(Choice(sparsity, count, _cost(budget, leaf, count), rise))
    return choices


def _loss(
    rule: Rule,
    sparsities: dict[str, float],
    params: Any,
    loss_fn: Callable[[Any], jax.Array],
) -> float:
    """The loss with all parameters pruned together."""
    gradients = gradients_of(rule, loss_fn, params)
    treedef: Any = jax.tree.structure(params)
    pruned = []
    for leaf, gradient in zip(_tree.named_leaves(params), gradients, strict=True):
        weights = leaf.value
        if sparsities.get(leaf.name, 0.0) > 0:
            target = jnp.float32([sparsities[leaf.name]])
            own, _ = pruned_to(rule, leaf.name, target, jnp.asarray(weights), gradient)
            weights = own[0]
        pruned.append(weights)
    return float(jax.jit(loss_fn)(treedef.unflatten(pruned)))


def _cost(budget: Budget, leaf: Any, kept: int) -> int:
    return budget.cost(np.shape(leaf), leaf.dtype.itemsize, kept)


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and bool(jnp.issubdtype(leaf.dtype, jnp.floating))
