"""Reads: where a program multiplies each weight by the inputs that reach it.

A weight can be pruned with its inputs if one product alone reads it, or each layer of
it. Everything else that is done with it has a reason here, which an error tells.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gradprune_jax._calibration.products import Product, product_of
from gradprune_jax._calibration.view_steps import views_after
from gradprune_jax._calibration.views import View, shape_of
from gradprune_jax._program import Program, Step, Trace


class Place(NamedTuple):
    """Where a weight is read, which must be the same for all batches.

    Attributes:
      leaf: its position among the parameters.
      turns: of the loops around the product, the outermost first.
      axes: the layer that is read, and what the axes of the weight are.
    """

    leaf: int
    turns: tuple[int, ...]
    axes: Any


@dataclasses.dataclass(frozen=True)
class Reads:
    """The products of a program that read weights.

    Attributes:
      views: the variables that are views of weights.
      products: by the variable of each result.
      loops: the scans whose bodies read weights, by identity: True where each turn
        reads a layer of its own, False where all read the same.
    """

    views: Mapping[int, View]
    products: Mapping[int, Product]
    loops: Mapping[int, bool]

    def product(self, step: Step) -> Product | None:
        """The product that a step is, if it reads a weight."""
        return self.products.get(step.results[0]) if step.results else None

    def is_layered(self, step: Step) -> bool | None:
        """Whether a step is a loop over layers; None if it reads no weights inside."""
        return self.loops.get(id(step))

    def without_views(self, step: Step) -> Step | None:
        """A step without the views that it makes; None if it makes nothing else."""
        results = [own for own in step.results if own not in self.views]
        if len(results) == len(step.results):
            return step
        # A barrier for several values, each of them a result.
        operands = [own for own in step.operands if own not in self.views]
        rest = dataclasses.replace(step, operands=operands, results=results)
        return rest if results else None

    def places(self, program: Program) -> Iterator[Place]:
        """Where each weight is read, in order."""
        for step in program.steps:
            product, is_layered = self.product(step), self.is_layered(step)
            if product is not None:
                view = product.view
                axes = (view.sizes, view.layers, view.places, product.axes())
                yield Place(view.leaf, (), axes)
            elif is_layered is not None:
                inner = list(self.places(step.bodies[0]))
                outer = [(turn,) for turn in turns_of(step)] if is_layered else [()]
                for turn, place in itertools.product(outer, inner):
                    yield place._replace(turns=(*turn, *place.turns))


def find_reads(trace: Trace, selected: Mapping[int, str]) -> Reads:
    """Finds the products that read each weight.

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


class _Use(NamedTuple):
    """A step that reads a weight.

    Attributes:
      view: what it reads.
      reader: its primitive, and where it is in the user's code.
      problem: why its inputs can't be known; empty if they can.
    """

    view: View
    reader: str
    problem: str


class _Finder:
    """Follows weights through a program, and notes what is done with each of them."""

    def __init__(self, types: Sequence[Any]) -> None:
        self.views: dict[int, View] = {}
        self.products: dict[int, Product] = {}
        self.loops: dict[int, bool] = {}
        self._types = types
        self._uses: dict[int, list[_Use]] = {}

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
            views = views_after(step, seen, self._types)
            if views is not None:
                found = zip(step.results, views, strict=True)
                self.views.update({own: view for own, view in found if view})
            elif step.primitive.name == "scan" and not in_turns:
                self._scan(step, seen, reached)
            else:
                self._read(step, seen, reached)

    def _read(self, step: Step, seen: Sequence[View | None], reached: set[int]) -> None:
        """Notes a step that does more with weights than to view them."""
        weights = [(position, view) for position, view in enumerate(seen) if view]
        for position, view in weights:
            problem, product = "is no product with inputs", None
            if len(weights) > 1:
                problem = "puts weights together"
            elif len(seen) == 2 and step.operands[1 - position] in reached:
                product = product_of(step, position, view)
            if product is not None and not product.features:
                problem = "has one input alone for each output"
            elif product is not None and not self._is_real(product.inputs):
                problem = "multiplies it by complex numbers"
            elif product is not None:
                self.products[step.results[0]] = product
                problem = ""
            self._note(view if product is None else product.view, step, problem)

    def _is_real(self, variable: int) -> bool:
        return not jnp.issubdtype(self._types[variable].dtype, jnp.complexfloating)

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
            self.loops[id(step)] = is_layered

    def _note(self, view: View, step: Step, problem: str) -> None:
        reader = f"{step.primitive.name} at {step.source}"
        self._uses.setdefault(view.leaf, []).append(_Use(view, reader, problem))

    def check(self, selected: Mapping[int, str]) -> None:
        """Refuses weights that are not read by one product, or by one a layer."""
        problems = []
        for leaf, name in selected.items():
            uses = self._uses.get(leaf, [])
            if not uses:
                problems.append(f"{name!r}: no output depends on it")
            elif len(uses) == 1 and uses[0].problem:
                _, reader, problem = uses[0]
                problems.append(f"{name!r}: it goes into {reader}, which {problem}")
            elif any(use.problem for use in uses) or not _is_each_layer_once(uses):
                times = "more than once" if len(uses) > 1 else "in part"
                readers = " and by ".join(use.reader for use in uses)
                problems.append(f"{name!r}: it is read {times}, by {readers}")
        if problems:
            several = "\n".join(f"  {problem}" for problem in problems)
            raise ValueError(
                "these parameters can't be pruned with their inputs, which one product "
                f"alone must read:\n{several}\nLeave them dense by `where`, or by a "
                "rule before the others: Rule(None, where=...)."
            )


def _is_each_layer_once(uses: Sequence[_Use]) -> bool:
    """Whether slices of a weight are all of it, each read once."""
    views = [use.view for use in uses]
    first = views[0]
    if any((own.sizes, own.layers) != (first.sizes, first.layers) for own in views):
        return False
    counts = zip(shape_of(first.layers, first.sizes), first.places, strict=True)
    wanted = math.prod(count for count, place in counts if place is not None)
    return len({own.places for own in views}) == len(views) == wanted


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
