"""Sensitivity: how the loss rises as each parameter alone is pruned."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax import _tree
from gradprune_jax._checks import check_sparsity
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._rules import Rule, Where, selected_leaves
from gradprune_jax._schedules import one_shot_schedule
from gradprune_jax._scores import AnyScore, Random
from gradprune_jax._structures import CoupledChannels, Structure, check_pattern
from gradprune_jax._tables import text_table, track


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The loss as each parameter alone is pruned; `str` prints it as a table.

    Attributes:
      paths: the parameters, one after the other.
      sparsities: to which each was pruned.
      losses: float32 (parameters, sparsities), float64 where the loss is.
      baseline: the loss of the parameters as they are.
      kept: int64 (parameters, sparsities), the weights that each keeps.
      rule: what pruned them, but for its schedule and its `where`.
      sizes: the weights of each parameter.
    """

    paths: tuple[str, ...]
    sparsities: tuple[float, ...]
    losses: np.ndarray
    baseline: float
    kept: np.ndarray | None = None
    rule: Rule | None = None
    sizes: tuple[int, ...] | None = None

    def __str__(self) -> str:
        header = ["path", *(f"{100 * s:.4g} %" for s in self.sparsities)]
        rows = [
            [path, *(f"{loss:.4g}" for loss in losses)]
            for path, losses in zip(self.paths, self.losses, strict=True)
        ]
        table = text_table(header, rows, left=1)
        return f"{table}\nloss without pruning: {self.baseline:.4g}"


def sensitivity(
    loss_fn: Callable[[Any], jax.Array],
    params: Any,
    sparsities: Sequence[float],
    *,
    where: Where | None = None,
    structure: Structure | None = None,
    stack_axis: int | None = None,
    score: AnyScore | None = None,
    progress: bool = False,
) -> Sensitivity:
    r"""Measures the loss as each parameter alone is pruned, without training.

    $$
    L_{l, s} = \mathrm{loss}(p_1, \dots, \mathrm{top}_{k(s)}(p_l), \dots)
    $$

    Use it to choose the sparsity of each layer: prune a layer less if its loss rises
    early.

    Args:
      loss_fn: maps parameters to a scalar; traced twice, for the loss without pruning
        and vectorised over sparsities. It may close over a batch, or average over
        several.
      params: the parameters, plain or boxed; there are copies of them in memory, one
        for each sparsity.
      sparsities: fractions of zeros, in [0, 1].
      where: which parameters, see `Rule`; by default `is_weight`.
      structure: which weights are kept together. N:M has one sparsity only, so
        `sparsities` is that number alone, `[0.5]` for 2:4.
      stack_axis: the axis along which layers are stacked.
      score: by what weights are ranked, see `Rule`; gradients are those of `loss_fn`.
      progress: whether to show a progress bar, which needs rich.

    Returns:
      The losses; `gradprune_jax.report.plot_sensitivity` draws them, and
      `allocate_sparsity` makes sparsities of them.

    Raises:
      ValueError: if an argument is not valid, or nothing is selected.
      ImportError: if `progress` is set and rich is not installed.

    Examples:
      >>> params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
      >>> print(sensitivity(lambda p: -jnp.sum(p["kernel"]), params, [0.25, 0.5]))
      path    25 %  50 %
      ------  ----  ----
      kernel    -9    -7
      loss without pruning: -10

    References:
      Li et al., [Pruning filters for efficient
      convnets](https://arxiv.org/abs/1608.08710), 2017, section 3.2.
    """
    values = _check_sparsities(sparsities, structure)
    if isinstance(structure, CoupledChannels):
        raise ValueError(
            "structure is CoupledChannels, which prunes several parameters together; "
            "sensitivity prunes each alone. Give Channel()."
        )
    rule = Rule(
        one_shot_schedule(values[0], 0),
        where=where,
        structure=structure,
        stack_axis=stack_axis,
        score=score,
    )
    named = _tree.named_leaves(params)
    _tree.check_arrays(named)
    _tree.check_values(named, "sensitivity")
    own = selected_leaves(rule, params)
    rule = dataclasses.replace(rule, where=None)  # one program for all choices
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(params)
    targets = jnp.asarray(values, jnp.float32)
    copies = [jnp.stack([jnp.asarray(leaf)] * len(values)) for leaf in leaves]
    gradients = gradients_of(rule, loss_fn, params)
    losses_of = jax.jit(jax.vmap(loss_fn))
    rows, counts = [], []
    for i in track(own, "sensitivity", shown=progress):
        pruned = list(copies)
        weights = jnp.asarray(leaves[i])
        pruned[i], kept = pruned_to(rule, named[i].name, targets, weights, gradients[i])
        counts.append(kept)
        rows.append(_as_row(losses_of(treedef.unflatten(pruned)), len(values)))
    return Sensitivity(
        paths=tuple(named[i].name for i in own),
        sparsities=tuple(values),
        losses=np.array(rows),
        baseline=float(jax.jit(loss_fn)(params)),
        kept=np.array(counts, np.int64),
        rule=rule,
        sizes=tuple(np.size(named[i].value) for i in own),
    )


def gradients_of(
    rule: Rule, loss_fn: Callable[[Any], jax.Array], params: Any
) -> list[Any]:
    """The gradient of every leaf, None where the rule's score reads none."""
    if rule.score is None or not rule.score.needs_gradients:
        return [None] * len(jax.tree.leaves(params))
    return jax.tree.leaves(jax.jit(jax.grad(loss_fn, allow_int=True))(params))


def pruned_to(
    rule: Rule, name: str, sparsities: jax.Array, weights: jax.Array, gradient: Any
) -> tuple[jax.Array, jax.Array]:
    """One leaf at every sparsity, [sparsities, *shape], and the weights it keeps."""
    if not isinstance(rule.score, Random):
        name = ""  # one program for all leaves alike
    return _pruned_to(rule, name, sparsities, weights, gradient)


def _check_sparsities(
    sparsities: Sequence[float], structure: Structure | None
) -> list[float]:
    """The sparsities as Python floats, each refused by its place in the list."""
    if np.ndim(sparsities) != 1 or isinstance(sparsities, str):
        raise ValueError(
            f"sparsities is {sparsities!r}; it must be a list of numbers in [0, 1]."
        )
    values = []
    for position, sparsity in enumerate(sparsities):
        name = f"sparsities[{position}]"
        values.append(check_sparsity(name, sparsity))
        check_pattern(name, values[-1], structure)
    if not values:
        raise ValueError("sparsities is empty; it needs at least one number in [0, 1].")
    return values


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pruned_to(
    rule: Rule, name: str, sparsities: jax.Array, weights: jax.Array, gradient: Any
) -> tuple[jax.Array, jax.Array]:
    def pruned(sparsity: jax.Array) -> tuple[jax.Array, jax.Array]:
        schedule = one_shot_schedule(sparsity, 0)
        (mask,) = update_masks(
            dataclasses.replace(rule, schedule=schedule),
            jnp.int32(0),
            [PrunedLeaf.unpruned(weights, name, rule.score, gradient)],
        )
        kept = jnp.sum(mask, dtype=jnp.uint32)
        return jnp.where(mask, weights, jnp.zeros_like(weights)), kept

    return jax.vmap(pruned)(sparsities)


def _as_row(losses: jax.Array, sparsities: int) -> np.ndarray:
    """The losses as numbers, refused if the function gave no scalar."""
    row = np.asarray(losses)
    if row.shape != (sparsities,):
        raise ValueError(
            f"loss_fn returned an array of shape {row.shape[1:]}; it must return a "
            "scalar."
        )
    return row if row.dtype == np.float64 else row.astype(np.float32)
