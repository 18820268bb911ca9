"""Reads: where a program multiplies each weight by the inputs that reach it.

A weight can be pruned with its inputs if one product alone reads it. Everything else
that is done with it has a reason here, which an error tells.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from gradprune_jax._calibration.products import Product, product_of
from gradprune_jax._calibration.views import View
from gradprune_jax._program import Program, Step, Trace

# Steps that leave their one operand as it is.
_UNCHANGED = frozenset(
    {"copy", "name", "sharding_constraint", "reshard", "mesh_cast", "pvary"}
)


@dataclasses.dataclass(frozen=True)
class Reads:
    """The products of a program that read weights.

    Attributes:
      views: the variables that are views of weights.
      products: by the variable of each result.
      loops: the scans whose bodies read weights, by the variable of their first result:
        True where each turn reads a layer of its own, False where all read the same.
    """

    views: Mapping[int, View]
    products: Mapping[int, Product]
    loops: Mapping[int, bool]

    def product(self, step: Step) -> Product | None:
        """The product that a step is, if it reads a weight."""
        return self.products.get(step.results[0]) if step.results else None

    def is_layered(self, step: Step) -> bool | None:
        """Whether a step is a loop over layers; None if it reads no weights inside."""
        return self.loops.get(step.results[0]) if step.results else None

    def is_view(self, step: Step) -> bool:
        """Whether a step makes nothing but a view of a weight."""
        return bool(step.results) and all(own in self.views for own in step.results)

    def places(self, program: Program) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Each weight that is read, in order: its leaf, and its layer in each loop."""
        for step in program.steps:
            product, is_layered = self.product(step), self.is_layered(step)
            if product is not None:
                yield product.view.leaf, ()
            elif is_layered is not None:
                inner = list(self.places(step.bodies[0]))
                turns = turns_of(step) if is_layered else [None]
                for turn, (leaf, layers) in itertools.product(turns, inner):
                    yield leaf, layers if turn is None else (turn, *layers)


def find_reads(trace: Trace, selected: Mapping[int, str]) -> Reads:
    """Finds the product that reads each weight.

    Args:
      trace: a traced function.
      selected: the names of the weights, by their positions among the leaves.

    Raises:
      ValueError: for weights that no product reads, or that something else reads too.
    """
    finder = _Finder(trace.types)
    program = trace.program
    for leaf in selected:
        variable = program.inputs[leaf]
        finder.views[variable] = View.of(leaf, trace.types[variable].shape)
    finder.follow(program, set(program.inputs[trace.params :]))
    finder.check(selected)
    return Reads(finder.views, finder.products, finder.loops)


def turns_of(step: Step) -> range:
    """The turns of a scan, in the order in which they run."""
    turns = range(step.params["length"])
    return turns[::-1] if step.params["reverse"] else turns


class _Finder:
    """Follows weights through a program, and notes what is done with each of them."""

    def __init__(self, types: Sequence[Any]) -> None:
        self.views: dict[int, View] = {}
        self.products: dict[int, Product] = {}
        self.loops: dict[int, bool] = {}
        self._types = types
        # By what each weight is read, and why that can't be used; "" where it can.
        self._uses: dict[int, list[tuple[str, str]]] = {}

    def follow(
        self, program: Program, reached: set[int], *, in_turns: bool = False
    ) -> None:
        """Follows weights through the steps of a program.

        Args:
          program: the program.
          reached: the variables that depend on the inputs; those of the program are
            added.
          in_turns: whether the program is run several times with the same weights.
        """
        for step in program.steps:
            if not reached.isdisjoint(step.operands):
                reached.update(step.results)
            seen = [self.views.get(operand) for operand in step.operands]
            if not any(seen):
                continue
            if step.primitive.name == "optimization_barrier":
                self._view(dict(zip(step.results, seen, strict=True)))
            elif step.primitive.name == "scan" and not in_turns:
                self._scan(step, seen, reached)
            elif len(seen) == 1 and (view := self._viewed(step, seen[0])):
                self._view({step.results[0]: view})
            else:
                self._read(step, seen, reached)

    def _view(self, views: Mapping[int, View | None]) -> None:
        self.views.update({own: view for own, view in views.items() if view})

    def _viewed(self, step: Step, view: Any) -> View | None:
        """What a step makes of a view; None if that is no view."""
        params, (result, *_) = step.params, step.results
        shape = self._types[result].shape
        match step.primitive.name:
            case "convert_element_type" if jnp.issubdtype(
                params["new_dtype"], jnp.floating
            ):
                return view.cast(params["new_dtype"])
            case "reshape" if params["dimensions"] is None:
                return view.reshaped(shape)
            case "squeeze":
                return view.reshaped(shape)
            case "broadcast_in_dim" if _is_order_kept(view.shape, shape):
                return view.reshaped(shape)
            case "transpose":
                return view.transposed(params["permutation"])
            case name if name in _UNCHANGED:
                return view
        return None

    def _read(self, step: Step, seen: Sequence[View | None], reached: set[int]) -> None:
        """Notes a step that does more with weights than to view them."""
        weights = [(position, view) for position, view in enumerate(seen) if view]
        for position, view in weights:
            problem, product = "is no product with inputs", None
            if len(weights) > 1:
                problem = "puts weights together"
            elif len(seen) == 2 and step.operands[1 - position] in reached:
                product = product_of(step, position, view)
            if product is not None:
                self.products[step.results[0]] = product
                problem = ""
            self._note(view, step, problem)

    def _scan(self, step: Step, seen: Sequence[View | None], reached: set[int]) -> None:
        """Follows weights into a loop: a layer of each, or the same in every turn."""
        (body,) = step.bodies
        consts, carry = step.params["num_consts"], step.params["num_carry"]
        after = consts + carry
        is_layered = any(seen[after:])
        for position, (view, inner) in enumerate(zip(seen, body.inputs, strict=True)):
            if view is None:
                continue
            if consts <= position < after:
                self._note(view, step, "changes it from turn to turn")
            elif position >= after:
                self.views[inner] = view.layer()
            elif is_layered:
                self._note(view, step, "reads it in every layer")
            else:
                self.views[inner] = view
        given = zip(step.operands, body.inputs, strict=True)
        reached.update(inner for operand, inner in given if operand in reached)
        carried = zip(body.inputs[consts:after], body.outputs, strict=False)
        _reach(body, reached, list(carried))
        known = len(self.products)
        self.follow(body, reached, in_turns=not is_layered)
        for output in body.outputs:
            if output in self.views:
                self._note(self.views[output], step, "returns it")
        if len(self.products) > known:
            self.loops[step.results[0]] = is_layered

    def _note(self, view: View, step: Step, problem: str) -> None:
        reader = f"{step.primitive.name} at {step.source}"
        self._uses.setdefault(view.leaf, []).append((reader, problem))

    def check(self, selected: Mapping[int, str]) -> None:
        """Refuses weights that are not read by exactly one product."""
        problems = []
        for leaf, name in selected.items():
            uses = self._uses.get(leaf, [])
            if not uses:
                problems.append(f"{name!r}: no output depends on it")
            elif len(uses) > 1:
                readers = " and by ".join(reader for reader, _ in uses)
                problems.append(f"{name!r}: it is read more than once, by {readers}")
            elif uses[0][1]:
                reader, problem = uses[0]
                problems.append(f"{name!r}: it goes into {reader}, which {problem}")
        if problems:
            several = "\n".join(f"  {problem}" for problem in problems)
            raise ValueError(
                "these parameters can't be pruned with their inputs, which one product "
                f"alone must read:\n{several}\nLeave them dense by `where`, or by a "
                "rule before the others: Rule(None, where=...)."
            )


def _reach(
    body: Program, reached: set[int], carried: Sequence[tuple[int, int]]
) -> None:
    """Adds the variables that depend on inputs, in any turn of a loop."""
    before = -1
    while before != len(reached):
        before = len(reached)
        for step in body.steps:
            if not reached.isdisjoint(step.operands):
                reached.update(step.results)
        reached.update(inner for inner, output in carried if output in reached)


def _is_order_kept(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a broadcast only adds axes of one element."""
    return [n for n in before if n != 1] == [n for n in after if n != 1]
