"""Pieces: a program cut at the products that read weights, each piece compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.reads import Reads
from gradprune_jax._program import Program, Step, Trace, bind


@dataclasses.dataclass
class Piece:
    """Steps that run together, and then a product whose inputs are known.

    Attributes:
      steps: in order; the first is a product whose weight is read when the piece runs,
        if `reads` is one.
      reads: that product.
      loop: the steps are one scan, whose body reads weights.
      product: the product that comes after the piece.
      inputs: the variables whose values the piece needs.
      outputs: its results that are needed after it.
      kept: all variables that are needed after it.
      run: from the values of the inputs to those of the outputs, and to what is
        observed of the product's inputs.
    """

    steps: list[Step] = dataclasses.field(default_factory=list)
    reads: Product | None = None
    loop: Step | None = None
    product: Product | None = None
    inputs: Sequence[int] = ()
    outputs: Sequence[int] = ()
    kept: frozenset[int] = frozenset()
    run: Any = None


class Pieces:
    """The pieces of a traced function's programs, each cut and compiled once.

    Args:
      trace: the function.
      reads: where it reads weights.
      observe: makes of a product a function of its inputs.
    """

    def __init__(
        self,
        trace: Trace,
        reads: Reads,
        observe: Callable[[Product], Callable[[jax.Array], jax.Array]],
    ) -> None:
        self._types = trace.types
        self._reads = reads
        self._observe = observe
        self._pieces: dict[int, list[Piece]] = {}
        self._programs: dict[str, Any] = {}

    def of(self, program: Program) -> list[Piece]:
        """The pieces of a program, in order."""
        known = self._pieces.get(id(program))
        if known is None:
            known = self._pieces[id(program)] = self._cut(program)
            needed = set(program.outputs)
            for piece in reversed(known):
                piece.kept = frozenset(needed)
                self._finish(piece, program)
                needed.update(piece.inputs)
        return known

    def _cut(self, program: Program) -> list[Piece]:
        """Steps before each product or loop that reads weights, and those after it."""
        pieces = [Piece()]
        for step in program.steps:
            product = self._reads.product(step)
            if product is not None:
                pieces[-1].product = product
                pieces.append(Piece([step], reads=product))
            elif self._reads.is_layered(step) is not None:
                pieces += [Piece([step], loop=step), Piece()]
            else:
                # Views are made of the weight when it is read.
                rest = self._reads.without_views(step)
                pieces[-1].steps += [] if rest is None else [rest]
        return pieces

    def _finish(self, piece: Piece, program: Program) -> None:
        """Finds what a piece reads and writes, and compiles it."""
        scalars = {own: x for own, x in program.constants if not np.ndim(x)}
        written = [result for step in piece.steps for result in step.results]
        read = [operand for step in piece.steps for operand in step.operands]
        if piece.product is not None:
            read.append(piece.product.inputs)
        piece.inputs = [own for own in dict.fromkeys(read) if own not in written]
        piece.outputs = [result for result in written if result in piece.kept]
        if piece.loop is not None:
            views = self._reads.views
            piece.inputs = [own for own in piece.inputs if own not in views]
            piece.outputs = written
            return
        piece.inputs = [own for own in piece.inputs if own not in scalars]
        piece.run = self._shared(self._compiled(piece, scalars), piece)

    def _compiled(self, piece: Piece, scalars: dict[int, Any]) -> Any:
        product = piece.product
        observe = None if product is None else self._observe(product)

        @functools.partial(jax.jit, keep_unused=True)  # so that the text tells them
        def run(given: Sequence[Any]) -> Any:
            values = dict(zip(piece.inputs, given, strict=True)) | scalars
            run_steps(piece.steps, values)
            found = None
            if observe is not None and product is not None:
                found = observe(values[product.inputs])
            return [values[output] for output in piece.outputs], found

        return run

    def _shared(self, run: Any, piece: Piece) -> Any:
        """The function of an earlier piece that computes the same, or this one.

        A model has many layers of one kind, and each compilation takes long.
        """
        types = [self._types[own] for own in piece.inputs]
        if any(map(_has_functions, piece.steps)) or any(map(_is_sharded, types)):
            return run  # the text does not say all
        given = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in types
        ]
        return self._programs.setdefault(run.lower(given).as_text(), run)


def run_steps(steps: Sequence[Step], values: dict[int, Any]) -> None:
    """Runs steps, and adds their results to the values of variables."""
    for step in steps:
        results = bind(step, [values[operand] for operand in step.operands])
        values.update(zip(step.results, results, strict=True))


def _has_functions(step: Step) -> bool:
    """Whether a step calls something, which may be a function of Python."""
    params = jax.tree.leaves(list(step.params.values()))
    return step.has_effect or any(
        hasattr(value, "jaxpr")
        or hasattr(value, "eqns")
        or (callable(value) and not isinstance(value, type))
        for value in params
    )


def _is_sharded(aval: Any) -> bool:
    """Whether a type says how its values are laid out, in explicit sharding mode."""
    return any(aval.sharding.spec)
