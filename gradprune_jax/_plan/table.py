"""Plan: what rules would do to a model, as a table."""

from __future__ import annotations

import dataclasses

from gradprune_jax._plan import folding
from gradprune_jax._plan.advice import advice
from gradprune_jax._plan.leaf import GroupPlan, LeafPlan
from gradprune_jax._rules import Rule
from gradprune_jax._structures import Channel
from gradprune_jax._tables import by, share, some_of, text_table


@dataclasses.dataclass(frozen=True)
class Plan:
    """What rules would do to a model; `str` prints it as a table (`table`).

    Attributes:
      leaves: every parameter, pruned or dense.
      rules: the rules, in order.
      kept_units: for each rule, the units (weights, blocks, channels) that it keeps in
        the end; None for a dense rule.
      kept: for each rule, the weights that it keeps in the end; None for a dense rule,
        and where units are of several sizes.
      update_steps: for each rule, the steps that recompute its masks.
      mask_bytes: the bytes that masks add to the optimizer's state: one a weight.
      groups: the groups of coupled channels that rules prune.
    """

    leaves: tuple[LeafPlan, ...]
    rules: tuple[Rule, ...]
    kept_units: tuple[int | None, ...]
    kept: tuple[int | None, ...]
    update_steps: tuple[tuple[int, ...], ...]
    mask_bytes: int
    groups: tuple[GroupPlan, ...] = ()

    @property
    def pruned(self) -> tuple[LeafPlan, ...]:
        """The parameters that a rule prunes."""
        return tuple(leaf for leaf in self.leaves if leaf.rule is not None)

    @property
    def dense(self) -> tuple[LeafPlan, ...]:
        """The parameters that stay as they are."""
        return tuple(leaf for leaf in self.leaves if leaf.rule is None)

    def __str__(self) -> str:
        return self.table()

    def table(self, fold: bool = True) -> str:
        """The plan as a table, with lines on rules, the total, and what looks wrong.

        Args:
          fold: whether alike layers are one row: parameters of the same shape, dtype,
            rule and counts whose paths differ in one number, `layers/{0..39}/kernel`.

        Returns:
          The lines as one string.

        Examples:
          >>> import jax, jax.numpy as jnp
          >>> from gradprune_jax import plan, polynomial_schedule
          >>> shape = jax.ShapeDtypeStruct((8, 4), jnp.float32)
          >>> planned = plan(polynomial_schedule(0.75, 0, 9), [{"w": shape}] * 12)
          >>> print(planned)
          path       shape  dtype    rule  structure     sparsity  kept
          ---------  -----  -------  ----  ------------  --------  ------
          {0..11}/w  8x4    float32  0     Unstructured  75.00 %   12 x 8
          rule 0 (where=is_weight, uniform): keeps 96 of 384 weights
            updates masks 2 times, steps 0 to 9
          total: 96 of 384 weights kept; masks take 384 bytes
          >>> "11/w  8x4" in planned.table(fold=False)
          True
        """
        header = ("path", "shape", "dtype", "rule", "structure", "sparsity", "kept")
        shown = folding.fold(self.leaves) if fold else folding.unfolded(self.leaves)
        lines = [text_table(header, list(map(_cells, shown)))]
        for position in range(len(self.rules)):
            lines.append(self._describe(position))
            lines += self._groups(position, fold)
        lines.append(self._total())
        lines += [
            f"check rule {position}: {sentence}"
            for position, rule in enumerate(self.rules)
            for sentence in advice(rule, self._of_rule(position))
        ]
        lines += self._missed()
        return "\n".join(lines)

    def _describe(self, position: int) -> str:
        """Lines on a rule: how much it keeps and when."""
        rule, steps = self.rules[position], self.update_steps[position]
        if rule.schedule is None:
            return f"rule {position} ({rule}): stays dense"
        own = self._of_rule(position)
        if not own:
            return (
                f"rule {position} ({rule}): prunes nothing, every parameter it matches "
                "is matched by a rule before it"
            )
        kept, of, what = self.kept[position], sum(leaf.size for leaf in own), "weights"
        groups = self._groups_of_rule(position)
        if groups:
            kept, of = self.kept_units[position], sum(group.units for group in groups)
            what = "coupled channels"
        elif kept is None:
            kept, of = self.kept_units[position], sum(leaf.units for leaf in own)
            what = "channels" if isinstance(rule.structure, Channel) else "blocks"
        times = "once, at step" if len(steps) == 1 else f"{len(steps)} times, steps"
        window = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return (
            f"rule {position} ({rule}, {_options(rule)}): keeps {kept:,} of {of:,} "
            f"{what}\n  updates masks {times} {window}"
        )

    def _groups(self, position: int, fold: bool) -> list[str]:
        """A table of the groups of coupled channels that a rule prunes."""
        groups = self._groups_of_rule(position)
        if not groups:
            return []
        rows = folding.fold(groups) if fold else folding.unfolded(groups)
        cells = [(row.path, *_cells_of_group(row)) for row in rows]
        table = text_table(("channels of", "before", "kept"), cells)
        return [f"    {line}" for line in table.splitlines()]

    def _groups_of_rule(self, position: int) -> list[GroupPlan]:
        return [group for group in self.groups if group.rule == position]

    def _total(self) -> str:
        """The line on all weights, and what masks take."""
        total = sum(leaf.size for leaf in self.dense)
        about = ""
        for position, kept in enumerate(self.kept):
            units = self.kept_units[position]
            if kept is not None:
                total += kept
            elif units is not None:  # blocks of several sizes, or groups of any
                about = "about "
                own = self._of_rule(position)
                if self._groups_of_rule(position):
                    left = [leaf.size * (1 - leaf.final_sparsity) for leaf in own]
                    total += round(sum(left))
                    continue
                part = units / max(sum(leaf.units for leaf in own), 1)
                total += round(part * sum(leaf.size for leaf in own))
        weights = sum(leaf.size for leaf in self.leaves)
        return (
            f"total: {about}{total:,} of {weights:,} weights kept; masks take "
            f"{self.mask_bytes:,} bytes"
        )

    def _missed(self) -> list[str]:
        """A line on weights that no rule matches, if there are any."""
        missed = [leaf for leaf in self.leaves if leaf.is_missed]
        if not missed:
            return []
        rows = sorted(folding.fold(missed), key=_size, reverse=True)
        weights = sum(leaf.size for leaf in self.leaves)
        dense = sum(leaf.size for leaf in missed)
        return [
            "left dense though they have two axes or more: "
            f"{some_of([row.path for row in rows])} "
            f"({share(dense, weights)} of all weights)"
        ]

    def _of_rule(self, position: int) -> list[LeafPlan]:
        return [leaf for leaf in self.leaves if leaf.rule == position]


def _options(rule: Rule) -> str:
    """How a rule shares out its sparsity, with the fields that are set."""
    options: list[str] = [rule.allocation]
    for name in ("stack_axis", "min_density", "min_per_channel", "output_axis"):
        value = getattr(rule, name)
        if value is not None and (name.endswith("axis") or value != 0):
            options.append(f"{name}={value}")
    return ", ".join(options)


def _size(row: folding.Row[LeafPlan]) -> int:
    """The weights of all leaves of a row."""
    return row.times * row.leaf.size


def _cells_of_group(row: folding.Row[GroupPlan]) -> tuple[str, str]:
    """The cells of a group of coupled channels, after its name."""
    times = f"{row.times:,} x " if row.times > 1 else ""
    group = row.leaf
    if group.kept_units is None:
        return f"{times}{group.units:,}", "by global rank"
    return f"{times}{group.units:,}", f"{times}{group.kept_units:,}"


def _cells(row: folding.Row[LeafPlan]) -> tuple[str, ...]:
    """The cells of a row in the printed table."""
    leaf = row.leaf
    times = f"{row.times:,} x " if row.times > 1 else ""
    common = (row.path, by(leaf.shape), str(leaf.dtype))
    if leaf.rule is None:
        return (*common, "dense", "", "", f"{times}{leaf.size:,}")
    if leaf.kept_units is None:
        kept = "by global rank"
    elif leaf.kept is None:
        kept = f"{times}{leaf.kept_units:,} of {leaf.units:,} blocks"
    else:
        kept = f"{times}{leaf.kept:,}"
    sparsity = f"{100 * leaf.final_sparsity:.2f} %"
    return (*common, str(leaf.rule), str(leaf.structure), sparsity, kept)
