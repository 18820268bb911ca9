"""Evaluation: a program runs up to each weight, which is pruned before it goes on.

The evaluation of a batch is a generator: it yields at each product what is known of the
inputs that reach it, and reads the weight after that. So the batches go forward
together, weight by weight, and of each only what is needed next is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradprune_jax._calibration.pieces import Pieces, run_steps
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
      turns: those of the loops around it, the outermost first.
      statistic: of the inputs that reach it.
    """

    product: Product
    turns: tuple[int, ...]
    statistic: jax.Array


class Evaluation:
    """A traced function, compiled once for all batches of the same types.

    Args:
      trace: the function.
      reads: where it reads weights.
      statistic: from the rows of inputs, [groups, samples, inputs], to an array. Those
        of several batches, or turns of a loop, are added up.
      axes_of: the axes along which a method sees the weights of a product.
      weight: gives the value of a view, in turns of the loops around it, laid out as
        its type says.
    """

    def __init__(
        self,
        trace: Trace,
        reads: Reads,
        statistic: Statistic,
        axes_of: Callable[[Product], Axes],
        weight: ReadWeight,
    ) -> None:
        self._program = trace.program
        self._types = trace.types
        self._reads = reads
        self._statistic = statistic
        self._axes_of = axes_of
        self._weight = weight
        self._pieces = Pieces(trace, reads, self._observer)
        self._observed: dict[int, Any] = {}

    def stops(self, inputs: Sequence[Any]) -> Generator[Stop, None, None]:
        """Runs the function for one batch, and stops before each weight.

        Args:
          inputs: the parameters and the batch, as flat leaves.
        """
        yield from self._run(self._program, inputs, ())

    def _run(
        self, program: Program, inputs: Sequence[Any], turns: tuple[int, ...]
    ) -> Generator[Stop, None, list[Any]]:
        """Runs a program, in these turns of the loops around it."""
        values = dict(zip(program.inputs, inputs, strict=True))
        values.update(program.constants)
        for piece in self._pieces.of(program):
            if piece.reads is not None:
                weight = piece.reads.variable
                values[weight] = self._value(weight, piece.reads.view, turns)
            statistic = None
            if piece.loop is not None:
                results = yield from self._loop(piece.loop, values, turns)
            else:
                results, statistic = piece.run([values[own] for own in piece.inputs])
            values.update(zip(piece.outputs, results, strict=True))
            values = {own: x for own, x in values.items() if own in piece.kept}
            if piece.product is not None and statistic is not None:
                yield Stop(piece.product, turns, statistic)
        return [values.get(output) for output in program.outputs]

    def _loop(
        self, step: Step, values: dict[int, Any], turns: tuple[int, ...]
    ) -> Generator[Stop, None, list[Any]]:
        """Runs a scan whose body reads weights."""
        if self._reads.is_layered(step):
            return (yield from self._layers(step, values, turns))
        # All turns read the same weights: run it once for each of them.
        for inner in step.bodies[0].steps:
            product = self._reads.product(inner)
            if product is not None:
                given = self._given(step, values, turns)
                yield Stop(product, turns, self._in_all_turns(step, product)(given))
        return list(bind(step, self._given(step, values, turns)))

    def _layers(
        self, step: Step, values: dict[int, Any], turns: tuple[int, ...]
    ) -> Generator[Stop, None, list[Any]]:
        """Runs the body of a scan layer by layer."""
        (body,), carry = step.bodies, step.params["num_carry"]
        after = step.params["num_consts"] + carry
        given = [values.get(operand) for operand in step.operands]
        fixed, carried = given[: after - carry], given[after - carry : after]
        rows: dict[int, list[Any]] = {}
        for turn in turns_of(step):
            own = [None if x is None else _layer_of(x, turn) for x in given[after:]]
            inputs = [*fixed, *carried, *own]
            results = yield from self._run(body, inputs, (*turns, turn))
            carried, rows[turn] = results[:carry], results[carry:]
        in_order = [rows[turn] for turn in sorted(rows)]
        return [*carried, *map(jnp.stack, zip(*in_order, strict=True))]

    def _given(
        self, step: Step, values: dict[int, Any], turns: tuple[int, ...]
    ) -> list[Any]:
        """The operands of a step, weights as they are now."""
        views = self._reads.views
        return [
            self._value(own, views[own], turns) if own in views else values[own]
            for own in step.operands
        ]

    def _value(self, variable: int, view: View, turns: tuple[int, ...]) -> jax.Array:
        """The value of a variable that is a view of a weight."""
        return self._weight(view, turns, self._types[variable].sharding.spec)

    def _in_all_turns(self, step: Step, product: Product) -> Any:
        """From the operands of a scan to the statistic of a product in its body."""
        result = product.step.results[0]
        if result not in self._observed:
            self._observed[result] = self._observing(step, product)
        return self._observed[result]

    def _observing(self, step: Step, product: Product) -> Any:
        """Compiles a scan whose carry adds up the statistic of a product's inputs."""
        (body,), carry = step.bodies, step.params["num_carry"]
        first, observe = step.params["num_consts"], self._observer(product)

        @jax.jit
        def run(given: Sequence[jax.Array]) -> jax.Array:
            fixed, layers = given[:first], list(given[first + carry :])

            def turn(carried: Any, layer: Any) -> Any:
                state, total = carried
                values = dict(zip(body.inputs, [*fixed, *state, *layer], strict=True))
                values.update(body.constants)
                run_steps(body.steps, values)
                state = [values[output] for output in body.outputs[:carry]]
                return (state, total + observe(values[product.inputs])), None

            inputs = self._types[product.inputs]
            shape = jax.eval_shape(
                observe, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
            )
            start = (list(given[first : first + carry]), jnp.zeros_like(shape))
            (_, total), _ = jax.lax.scan(
                turn, start, layers, step.params["length"], step.params["reverse"]
            )
            return total

        return run

    def _observer(self, product: Product) -> Statistic:
        """From a product's inputs to their statistic."""
        axes = self._axes_of(product)
        return lambda inputs: self._statistic(product.rows(replicated(inputs), axes))


@jax.jit
def _layer_of(array: jax.Array, turn: int) -> jax.Array:
    """One layer of what a scan goes over."""
    return jax.lax.dynamic_index_in_dim(array, turn, keepdims=False)
