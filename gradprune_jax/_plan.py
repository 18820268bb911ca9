"""Plan: what rules would do to a model, before an array exists."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gradprune_jax import _paths
from gradprune_jax._allocation import kept_units, least_units
from gradprune_jax._rules import Allocation, Rule, Where, as_rules, assign
from gradprune_jax._schedules import SparsitySchedule
from gradprune_jax._structures import Structure, Unstructured
from gradprune_jax._transform import ScheduleOrRules


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """What is planned for one parameter.

    Attributes:
      path: the parameter's path, keys joined by `/`.
      shape: its shape.
      dtype: its dtype.
      size: its number of weights.
      rule: the position of its rule, None if it stays dense.
      structure: which of its weights are kept together, None if it stays dense.
      final_sparsity: the schedule's last sparsity, 0 if it stays dense.
      kept: its weights in the end; None where the weights of other leaves decide
        (global allocation).
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    size: int
    rule: int | None
    structure: Structure | None
    final_sparsity: float
    kept: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What rules would do to a model; `str` prints it as a table.

    Attributes:
      leaves: every parameter, pruned or dense.
      rules: the rules, in order.
      kept: for each rule, the weights that it keeps in the end; None for a dense rule.
      update_steps: for each rule, the steps that recompute its masks.
      mask_bytes: the bytes that masks add to the optimizer's state: one a weight.
    """

    leaves: tuple[LeafPlan, ...]
    rules: tuple[Rule, ...]
    kept: tuple[int | None, ...]
    update_steps: tuple[tuple[int, ...], ...]
    mask_bytes: int

    @property
    def pruned(self) -> tuple[LeafPlan, ...]:
        """The parameters that a rule prunes."""
        return tuple(leaf for leaf in self.leaves if leaf.rule is not None)

    @property
    def dense(self) -> tuple[LeafPlan, ...]:
        """The parameters that stay as they are."""
        return tuple(leaf for leaf in self.leaves if leaf.rule is None)

    def __str__(self) -> str:
        header = ("path", "shape", "dtype", "rule", "structure", "sparsity", "kept")
        rows = [header, *(_row(leaf) for leaf in self.leaves)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [self._describe(position) for position in range(len(self.rules))]
        weights = sum(leaf.size for leaf in self.leaves)
        dense = sum(leaf.size for leaf in self.dense)
        total = dense + sum(kept or 0 for kept in self.kept)
        lines.append(
            f"total: {total:,} of {weights:,} weights kept; masks take "
            f"{self.mask_bytes:,} bytes"
        )
        return "\n".join(line.rstrip() for line in lines)

    def _describe(self, position: int) -> str:
        """One line on a rule: how much it keeps and when."""
        rule, steps = self.rules[position], self.update_steps[position]
        if rule.schedule is None:
            return f"rule {position} ({rule}): stays dense"
        size = sum(leaf.size for leaf in self.pruned if leaf.rule == position)
        if not size:
            return (
                f"rule {position} ({rule}): prunes nothing, every parameter it matches "
                "is matched by a rule before it"
            )
        times = "once, at step" if len(steps) == 1 else f"{len(steps)} times, steps"
        window = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return (
            f"rule {position} ({rule}, {rule.allocation}): keeps "
            f"{self.kept[position]:,} of {size:,} weights\n"
            f"  updates masks {times} {window}"
        )


def plan(
    schedule_or_rules: ScheduleOrRules,
    params: Any,
    *,
    total_steps: int | None = None,
    where: Where | None = None,
    structure: Structure | None = None,
    allocation: Allocation = "uniform",
    stack_axis: int | None = None,
    min_density: float = 0.0,
) -> Plan:
    """A dry run: which parameters are pruned, how far, when, and at what cost.

    Args:
      schedule_or_rules: as for :func:`gradual_prune`, and so the fields of a rule.
      params: parameters, or their shapes from ``jax.eval_shape``.
      total_steps: the number of optimizer updates of the training, to check that the
        last mask update falls within it.
      where: which parameters to prune.
      structure: which weights are kept together.
      allocation: how the sparsity is shared out.
      stack_axis: the axis along which layers are stacked.
      min_density: the fraction that each leaf keeps at least.

    Returns:
      The plan; ``print(plan(...))`` shows it as a table.

    Raises:
      ValueError: if a rule matches nothing or a leaf that cannot be pruned, the window
        does not end within `total_steps`, or a schedule is traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gradprune_jax import polynomial_schedule
      >>> shapes = {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
      >>> print(plan(polynomial_schedule(0.75, 0, 100, every=50), shapes))
      path    shape  dtype    rule  structure     sparsity  kept
      ------  -----  -------  ----  ------------  --------  ----
      kernel  8x4    float32  0     Unstructured  75.00 %   8
      rule 0 (where=is_weight, uniform): keeps 8 of 32 weights
        updates masks 3 times, steps 0 to 100
      total: 8 of 32 weights kept; masks take 32 bytes
    """
    rules = as_rules(
        schedule_or_rules,
        where=where,
        structure=structure,
        allocation=allocation,
        stack_axis=stack_axis,
        min_density=min_density,
    )
    for position, rule in enumerate(rules):
        _check_schedule(position, rule.schedule, total_steps)
    leaves = _paths.named_leaves(params)
    assigned = assign(rules, params)
    plans = tuple(
        _plan_leaf(leaf, position, None if position is None else rules[position])
        for leaf, position in zip(leaves, assigned, strict=True)
    )
    return Plan(
        leaves=plans,
        rules=rules,
        kept=tuple(_kept(position, rule, plans) for position, rule in enumerate(rules)),
        update_steps=tuple(
            () if rule.schedule is None else rule.schedule.update_steps
            for rule in rules
        ),
        mask_bytes=sum(leaf.size for leaf in plans if leaf.rule is not None),
    )


def _plan_leaf(leaf: _paths.Leaf, position: int | None, rule: Rule | None) -> LeafPlan:
    """The plan of one parameter under its rule."""
    shape = np.shape(leaf.value)
    size = int(np.prod(shape, dtype=object))
    final, structure = 0.0, None
    kept: int | None = size
    if rule is not None and rule.schedule is not None:
        final = float(np.float32(rule.schedule.final_sparsity))
        structure = rule.structure or Unstructured()
        slices = 1 if rule.stack_axis is None else shape[rule.stack_axis]
        kept = (
            None
            if rule.allocation == "global"
            else slices * kept_units(size // max(slices, 1), final)
        )
    return LeafPlan(
        path=leaf.name,
        shape=shape,
        dtype=getattr(leaf.value, "dtype", np.asarray(leaf.value).dtype),
        size=size,
        rule=position,
        structure=structure,
        final_sparsity=final,
        kept=kept,
    )


def _kept(position: int, rule: Rule, leaves: tuple[LeafPlan, ...]) -> int | None:
    """The weights that a rule keeps in the end."""
    if rule.schedule is None:
        return None
    own = [leaf for leaf in leaves if leaf.rule == position]
    if rule.allocation != "global":
        return sum(leaf.kept or 0 for leaf in own)
    final = float(np.float32(rule.schedule.final_sparsity))
    least = sum(least_units(leaf.size, rule.min_density) for leaf in own)
    return max(kept_units(sum(leaf.size for leaf in own), final), least)


def _check_schedule(
    position: int, schedule: SparsitySchedule | None, total_steps: int | None
) -> None:
    """Refuses a schedule that cannot be planned, or does not end within training."""
    if schedule is None:
        return
    if not schedule.is_concrete:
        raise ValueError(
            f"the schedule of rule {position} has traced fields; plan needs numbers."
        )
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps is {total_steps}; it must be at least 1.")
    if total_steps is not None and schedule.end_step >= total_steps:
        raise ValueError(
            f"the schedule of rule {position} has end_step={schedule.end_step}, but "
            f"the last of {total_steps} updates is step {total_steps - 1}: its final "
            f"mask update would never happen. Set end_step to {total_steps - 1} or "
            "less."
        )


def _row(leaf: LeafPlan) -> tuple[str, ...]:
    """The cells of a parameter in the printed table."""
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    common = (leaf.path, shape, str(leaf.dtype))
    if leaf.rule is None:
        return (*common, "dense", "", "", f"{leaf.size:,}")
    kept = "by global rank" if leaf.kept is None else f"{leaf.kept:,}"
    sparsity = f"{100 * leaf.final_sparsity:.2f} %"
    return (*common, str(leaf.rule), type(leaf.structure).__name__, sparsity, kept)
