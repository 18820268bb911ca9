"""Evaluation: a program runs up to each weight, which is pruned before it goes on.

A program is cut into pieces at the products that read weights, and each piece is
compiled. The evaluation of a batch is a generator: it yields at each product what is
known of the inputs that reach it, and reads the weight after that. So the batches go
forward together, weight by weight, and of each only what is needed next is in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._calibration.products import Product
from gradprune_jax._calibration.reads import Reads, turns_of
from gradprune_jax._calibration.views import Axes, View
from gradprune_jax._layouts import replicated
from gradprune_jax._program import Program, Step, Trace, bind

Statistic = Callable[[jax.Array], jax.Array]
ReadWeight = Callable[[View, tuple[int, ...], Any], jax.Array]


class Stop(NamedTuple):
    """A product that is about to read its weight.

    Attributes:
      product: the product.
      layers: the index of its layer in each loop around it.
      statistic: of the inputs that reach it.
    """

    product: Product
    layers: tuple[int, ...]
    statistic: jax.Array


@dataclasses.dataclass(frozen=True)
class Piece:
    """Steps that run together, and then a product whose inputs are known.

    Attributes:
      loop: the steps are this one scan, whose body reads weights.
      reads: the product of the first step, whose weight is read when the piece runs.
      product: the product that comes after the piece.
      inputs: the variables whose values the piece needs.
      outputs: its results that are needed after it.
      run: from the values of the inputs to those of the outputs, and the statistic of
        the product's inputs.
    """

    loop: Step | None
    reads: Product | None
    product: Product | None
    inputs: Sequence[int]
    outputs: Sequence[int]
    run: Any


class Evaluation:
    """A program in pieces, compiled once for all batches of the same types.

    Args:
      trace: the program.
      reads: where it reads weights.
      statistic: from the rows of inputs, [groups, samples, inputs], to an array. Those
        of several batches, or turns of a loop, are added up.
      axes_of: the axes along which a method sees the weights of a product.
      weight: gives the value of a view, for the indices of layers around it and the
        layout of its type.
    """

    def __init__(
        self,
        trace: Trace,
        reads: Reads,
        statistic: Statistic,
        axes_of: Callable[[Product], Axes],
        weight: ReadWeight,
    ) -> None:
        self._types = trace.types
        self._reads = reads
        self._statistic = statistic
        self._axes_of = axes_of
        self._weight = weight
        self._pieces: dict[int, list[Piece]] = {}
        self._programs: dict[str, Any] = {}
        self._observed: dict[int, Any] = {}

    def run(
        self, program: Program, inputs: Sequence[Any], layers: tuple[int, ...] = ()
    ) -> Generator[Stop, None, list[Any]]:
        """Runs a program, and stops before each weight.

        Args:
          program: the program.
          inputs: the values of its inputs; anything for weights.
          layers: the indices of the layers that it is run for.

        Returns:
          The outputs.
        """
        values = dict(zip(program.inputs, inputs, strict=True))
        values.update(program.constants)
        pieces = self._pieces_of(program)
        for number, piece in enumerate(pieces):
            statistic = None
            if piece.loop is not None:
                results = yield from self._loop(piece.loop, values, layers)
            else:
                if piece.reads is not None:
                    values[piece.reads.variable] = self._value(
                        piece.reads.variable, piece.reads.view, layers
                    )
                given = [values[own] for own in piece.inputs]
                results, statistic = piece.run(given)
            values.update(zip(piece.outputs, results, strict=True))
            needed = {own for after in pieces[number + 1 :] for own in after.inputs}
            needed.update(program.outputs)
            values = {own: value for own, value in values.items() if own in needed}
            if piece.product is not None and statistic is not None:
                yield Stop(piece.product, layers, statistic)
        return [values.get(output) for output in program.outputs]

    def _loop(
        self, step: Step, values: dict[int, Any], layers: tuple[int, ...]
    ) -> Generator[Stop, None, list[Any]]:
        """Runs a scan whose body reads weights."""
        if self._reads.is_layered(step):
            return (yield from self._layers(step, values, layers))
        # All turns read the same weights: run it once for each of them.
        for product in self._products_of(step.bodies[0]):
            statistic = self._observe(step, product)(self._given(step, values, layers))
            yield Stop(product, layers, statistic)
        return list(bind(step, self._given(step, values, layers)))

    def _layers(
        self, step: Step, values: dict[int, Any], layers: tuple[int, ...]
    ) -> Generator[Stop, None, list[Any]]:
        """Runs the body of a scan layer by layer."""
        (body,), carry = step.bodies, step.params["num_carry"]
        after = step.params["num_consts"] + carry
        given = [values.get(operand) for operand in step.operands]
        fixed, carried = given[: after - carry], given[after - carry : after]
        rows: dict[int, list[Any]] = {}
        for turn in turns_of(step):
            own = [
                None if each is None else layer_of(each, turn) for each in given[after:]
            ]
            results = yield from self.run(
                body, [*fixed, *carried, *own], (*layers, turn)
            )
            carried, rows[turn] = results[:carry], results[carry:]
        in_order = [rows[turn] for turn in sorted(rows)]
        return [*carried, *map(jnp.stack, zip(*in_order, strict=True))]

    def _given(
        self, step: Step, values: dict[int, Any], layers: tuple[int, ...]
    ) -> list[Any]:
        """The operands of a step, weights as they are now."""
        views = self._reads.views
        return [
            self._value(own, views[own], layers) if own in views else values[own]
            for own in step.operands
        ]

    def _value(self, variable: int, view: View, layers: tuple[int, ...]) -> jax.Array:
        """The value of a variable that is a view of a weight."""
        return self._weight(view, layers, self._types[variable].sharding.spec)

    def _products_of(self, program: Program) -> list[Product]:
        return [p for p in map(self._reads.product, program.steps) if p is not None]

    def _observe(self, step: Step, product: Product) -> Any:
        """A scan that returns the statistic of a product's inputs in all turns."""
        known = self._observed.get(product.step.results[0])
        if known is not None:
            return known
        (body,), carry = step.bodies, step.params["num_carry"]
        first = step.params["num_consts"]
        rows = self._rows_of(product)

        @jax.jit
        def observe(given: Sequence[jax.Array]) -> jax.Array:
            fixed, layers = given[:first], list(given[first + carry :])

            def turn(carried: Any, layer: Any) -> Any:
                state, total = carried
                values = dict(zip(body.inputs, [*fixed, *state, *layer], strict=True))
                values.update(body.constants)
                run_steps(body.steps, values)
                state = [values[output] for output in body.outputs[:carry]]
                return (state, total + rows(values[product.inputs])), None

            inputs = self._types[product.inputs]
            shape = jax.eval_shape(
                rows, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
            )
            start = (list(given[first : first + carry]), jnp.zeros_like(shape))
            (_, total), _ = jax.lax.scan(
                turn, start, layers, step.params["length"], step.params["reverse"]
            )
            return total

        self._observed[product.step.results[0]] = observe
        return observe

    def _rows_of(self, product: Product) -> Statistic:
        """From a product's inputs to their statistic."""
        axes = self._axes_of(product)
        return lambda inputs: self._statistic(product.rows(replicated(inputs), axes))

    def _pieces_of(self, program: Program) -> list[Piece]:
        """A program, cut at the products that read weights."""
        known = self._pieces.get(id(program))
        if known is not None:
            return known
        parts: list[_Part] = [_Part([])]
        for step in program.steps:
            product = self._reads.product(step)
            if self._reads.is_view(step):
                continue
            if product is not None:
                parts[-1].product = product
                parts.append(_Part([], reads=product))
            if self._reads.is_layered(step) is not None:
                parts += [_Part([step], is_loop=True), _Part([])]
            else:
                parts[-1].steps.append(step)
        needed = set(program.outputs)
        pieces = []
        for part in reversed(parts):
            piece = self._piece(part, needed, program)
            needed.update(piece.inputs)
            pieces.append(piece)
        self._pieces[id(program)] = pieces[::-1]
        return self._pieces[id(program)]

    def _piece(self, part: _Part, needed: set[int], program: Program) -> Piece:
        """Compiles a part of a program, for what is needed after it."""
        scalars = {own: x for own, x in program.constants if not np.ndim(x)}
        written = [result for step in part.steps for result in step.results]
        read = [operand for step in part.steps for operand in step.operands]
        if part.product is not None:
            read.append(part.product.inputs)
        inputs = [own for own in dict.fromkeys(read) if own not in {*written, *scalars}]
        if part.is_loop:
            views = self._reads.views
            own = [operand for operand in inputs if operand not in views]
            return Piece(part.steps[0], None, None, own, written, None)
        outputs = [result for result in written if result in needed]
        rows = None if part.product is None else self._rows_of(part.product)
        product = part.product

        @jax.jit
        def run(given: Sequence[Any]) -> Any:
            values = dict(zip(inputs, given, strict=True)) | scalars
            run_steps(part.steps, values)
            found = None
            if rows is not None and product is not None:
                found = rows(values[product.inputs])
            return [values[output] for output in outputs], found

        run = self._shared(run, part, inputs)
        return Piece(None, part.reads, part.product, inputs, outputs, run)

    def _shared(self, run: Any, part: _Part, inputs: Sequence[int]) -> Any:
        """The function of an earlier piece that computes the same, or this one.

        A model has many layers of one kind, and each compilation takes long.
        """
        types = [self._types[own] for own in inputs]
        if any(step.bodies for step in part.steps) or any(map(_is_sharded, types)):
            return run  # the text may not say all
        given = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in types
        ]
        return self._programs.setdefault(run.lower(given).as_text(), run)


def _is_sharded(aval: Any) -> bool:
    """Whether a type says how its values are laid out, in explicit sharding mode."""
    return any(aval.sharding.spec)


@dataclasses.dataclass
class _Part:
    """A part of a program, while it is cut."""

    steps: list[Step]
    reads: Product | None = None
    product: Product | None = None
    is_loop: bool = False


def run_steps(steps: Sequence[Step], values: dict[int, Any]) -> None:
    """Runs steps, and adds their results to the values of variables."""
    for step in steps:
        results = bind(step, [values[operand] for operand in step.operands])
        values.update(zip(step.results, results, strict=True))


@jax.jit
def layer_of(array: jax.Array, turn: int) -> jax.Array:
    """One layer of what a scan goes over."""
    return jax.lax.dynamic_index_in_dim(array, turn, keepdims=False)
