"""Shrink: a function and its parameters without the indices that change no output."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._checks import is_traced
from gradprune_jax._program.analysis import Analysis, Zeros
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.groups import ChannelGroups, groups_of
from gradprune_jax._program.rules import RULES, UNKNOWN
from gradprune_jax._program.tracing import Program, Trace, trace
from gradprune_jax._program.walks import find_axes, find_zeros, run
from gradprune_jax._tables import by, some_of, text_table
from gradprune_jax._tree import Leaf, named_leaves


def analyse(traced: Trace) -> Analysis:
    """Finds the units of a traced function; inputs and outputs are fixed."""
    analysis = Analysis(traced.types, {**RULES, "": UNKNOWN})
    inputs = traced.program.inputs
    shapes = [analysis.shape(variable) for variable in inputs]
    axes = [*map(analysis.new_axes, shapes)]
    for axis in itertools.chain(*axes[traced.params :]):
        analysis.fix(axis, "input")
    find_axes(traced.program, axes, analysis)
    read = {operand for step in traced.program.steps for operand in step.operands}
    for variable in inputs:
        if variable not in read:
            analysis.fix_variable(variable, "not used")
    for output in traced.program.outputs:
        analysis.fix_variable(output, "output")
    analysis.cut = np.zeros(len(analysis.units), bool)
    return analysis


@dataclasses.dataclass(frozen=True)
class Shrunk:
    """A smaller function with the same outputs, as from `shrink`.

    Attributes:
      params: the parameters, in the same tree, without what was cut.
      fn: the function of them and of the same inputs. It may be compiled,
        differentiated, vectorised and exported like the one that it came from.
      sizes: the old and the new size of every group of `channel_groups`, by its name.
      fixed: why the dimensions that could not be cut are fixed, by their names.
      unknown: primitives that have no rule, and where each was met first.
      shapes: the shape that each parameter had before, by its name.
      indices: the indices that stayed along each of its axes; None where all did.
    """

    params: Any
    fn: Callable[..., Any]
    sizes: dict[str, tuple[int, int]]
    fixed: dict[str, str]
    unknown: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(repr=False)
    indices: dict[str, tuple[np.ndarray | None, ...]] = dataclasses.field(repr=False)

    def cut(self, tree: Any) -> Any:
        """Cuts another tree like the parameters: a moving average, moments, masks.

        Args:
          tree: a tree with the paths of the original parameters, plain or boxed. Leaves
            of it may be missing, as `optax.masked` leaves them out, and leaves of one
            element, which stand for no array, are returned as they are.

        Returns:
          The tree, each leaf without the indices that its parameter lost.

        Raises:
          ValueError: if a leaf has no parameter of its path, or another shape.

        Examples:
          >>> import jax.numpy as jnp, gradprune_jax as gp
          >>> def fn(params, x):
          ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
          >>> w1 = jnp.ones((2, 3)).at[:, 1].set(0)
          >>> params = {"w1": w1, "w2": jnp.ones((3, 1))}
          >>> shrunk = gp.shrink(fn, params, jnp.ones((1, 2)))
          >>> average = params | {"w1": jnp.arange(6.0).reshape(2, 3)}
          >>> print(shrunk.cut(average)["w1"])
          [[0. 2.]
           [3. 5.]]
        """
        found = [self._cut_leaf(leaf) for leaf in named_leaves(tree)]
        treedef: Any = jax.tree.structure(tree)
        return treedef.unflatten(found)

    def _cut_leaf(self, leaf: Leaf) -> Any:
        if np.size(leaf.value) <= 1:
            return leaf.value
        shape = np.shape(leaf.value)
        if self.shapes.get(leaf.name) != shape:
            before = some_of([*map(_described, self.shapes.items())])
            raise ValueError(
                f"the tree has {leaf.name!r} of shape {shape}; the parameters were "
                f"{before} before the cut. Give a tree like these."
            )
        value = leaf.value
        for axis, own in enumerate(self.indices[leaf.name]):
            if own is not None:
                value = value.take(own, axis)
        return value

    def __str__(self) -> str:
        rows = [
            (name, f"{old:,}", f"{new:,}", self.fixed.get(name, ""))
            for name, (old, new) in self.sizes.items()
        ]
        lines = [text_table(("dimension", "before", "after", "fixed by"), rows)]
        if self.unknown:
            names = ", ".join(self.unknown)
            lines.append(f"Without a rule, so nothing was cut at: {names}.")
        return "\n".join(lines)


def _described(parameter: tuple[str, tuple[int, ...]]) -> str:
    name, shape = parameter
    return f"{name} {by(shape)}"


def channel_groups(fn: Callable[..., Any], params: Any, *inputs: Any) -> ChannelGroups:
    """Finds which axes of which parameters are one dimension of a function.

    Args:
      fn: the function, `fn(params, *inputs)`.
      params: its parameters, a tree of arrays or of `jax.ShapeDtypeStruct`.
      *inputs: trees of arrays or shapes.

    Returns:
      The groups, printable as a table: name, size and members of each, or why it is
      fixed.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
      >>> params = {"w1": jnp.ones((2, 3)), "w2": jnp.ones((3, 5))}
      >>> groups = gp.channel_groups(fn, params, jnp.ones((1, 2)))
      >>> [(group.members, group.size) for group in groups.groups if not group.fixed]
      [((('w1', 1), ('w2', 0)), 3)]
    """
    traced = trace(fn, params, inputs)
    analysis = analyse(traced)
    groups = groups_of(analysis, traced, _names(params))
    found = tuple(group for group, _ in groups)
    return ChannelGroups(found, tuple(analysis.unknown.items()))


def shrink(fn: Callable[..., Any], params: Any, *inputs: Any) -> Shrunk:
    r"""Cuts the indices that change no output out of a function and its parameters.

    The function is traced. Index c of a dimension goes if nothing depends on its place,
    and if every sum over the dimension,

    $$
    y_j = \sum_c x_c w_{cj},
    $$

    has a term there that is exactly zero: because the producer of $x_c$ is zero (a
    kernel's column, with its bias and the scale and shift of a norm) or the consumer
    (the row $w_c$). It goes from all arrays at once, and this is repeated until nothing
    changes. Only zeros count: no masks or rules are needed.

    Args:
      fn: the function, `fn(params, *inputs)`. Arrays that it closes over are cut too.
      params: its parameters, a tree of arrays.
      *inputs: trees of arrays, or of `jax.ShapeDtypeStruct`.

    Returns:
      The smaller parameters and a function of them. Outputs are the same up to the
      rounding of shorter sums. Where there is nothing to cut they are bit for bit.

    Raises:
      ValueError: if parameters are traced: whether they are zero must be known.

    Examples:
      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> def fn(params, x):
      ...     return jnp.maximum(x @ params["w1"], 0) @ params["w2"]
      >>> params = {"w1": jnp.ones((2, 3)).at[:, 1].set(0), "w2": jnp.ones((3, 1))}
      >>> x = jnp.array([[1.0, 2.0]])
      >>> shrunk = gp.shrink(fn, params, x)
      >>> print(shrunk.params["w1"].shape, shrunk.fn(shrunk.params, x) == fn(params, x))
      (2, 2) [[ True]]
    """
    leaves = named_leaves(params)
    for leaf in leaves:
        if is_traced(leaf.value):
            raise ValueError(
                f"parameter {leaf.name!r} is traced, so it is not known where it "
                "is zero; call shrink outside jit."
            )
    traced = trace(fn, params, inputs)
    analysis = analyse(traced)
    program, values = traced.program, [leaf.value for leaf in leaves]
    of_inputs = [
        Zeros.of(False, analysis.shape(variable))
        for variable in program.inputs[len(values) :]
    ]
    is_changed = True
    while is_changed:  # what was cut may leave a channel further up without a reader
        analysis.start_over()
        of_params = map(analysis.zeros_of, program.inputs, values)
        find_zeros(program, [*of_params, *of_inputs], analysis)
        is_changed = analysis.cut_more()
    analysis.keep_one_of_each()
    cut = Cut(analysis)
    smaller = list(map(cut.array, program.inputs, values))
    names = _names(params)
    groups = groups_of(analysis, traced, names)
    axes = [analysis.axes[variable] for variable in program.inputs[: len(values)]]
    return Shrunk(
        params=jax.tree.unflatten(jax.tree.structure(params), smaller),
        fn=_smaller_function(fn, params, traced, cut),
        sizes={
            group.name: (group.size, group.size - int(analysis.cut[units].sum()))
            for group, units in groups
        },
        fixed={group.name: group.fixed for group, _ in groups if group.fixed},
        unknown=analysis.unknown,
        shapes=dict(zip(names, map(np.shape, values), strict=True)),
        indices={
            name: tuple(map(cut.indices, own))
            for name, own in zip(names, axes, strict=True)
        },
    )


def _smaller_function(
    fn: Callable[..., Any], params: Any, traced: Trace, cut: Cut
) -> Callable[..., Any]:
    """The function of smaller parameters, traced anew for inputs of other shapes."""
    full = jax.tree.map(_as_type, params)
    names = _names(params)
    known = _known_variables(traced)
    stays = [[cut.stays(axis) for axis in cut.analysis.axes[x]] for x in known]
    shapes = [cut.shape(variable) for variable in known[: traced.params]]
    structure = jax.tree.structure(params)

    def small(params: Any, *inputs: Any) -> Any:
        given: Any = jax.tree.structure(params)
        if given != structure:
            raise ValueError(f"params is {given}; fn was shrunk with {structure}.")
        leaves = jax.tree.leaves(params)
        for name, leaf, shape in zip(names, leaves, shapes, strict=True):
            if jnp.shape(leaf) != shape:
                raise ValueError(
                    f"parameter {name!r} has the shape {jnp.shape(leaf)}; after the "
                    f"cut it has {shape}. Give the `params` of the same `Shrunk`."
                )
        anew = trace(fn, full, jax.tree.map(_as_type, inputs))
        own = Cut(analyse(anew))
        for variable, per_axis in zip(_known_variables(anew), stays, strict=False):
            own.impose(variable, per_axis)
        for name, variable, shape in zip(
            names, anew.program.inputs, shapes, strict=False
        ):
            if own.shape(variable) != shape:
                raise ValueError(
                    f"for inputs of these shapes fn can't do with {shape} of "
                    f"{name!r}, as it could when it was shrunk; shrink it with such "
                    "inputs."
                )
        outputs = run(anew.program, [*leaves, *jax.tree.leaves(inputs)], own)
        return jax.tree.unflatten(anew.outputs, outputs)

    return small


def _known_variables(traced: Trace) -> list[int]:
    """The parameters, then the constants of the program and of all its bodies."""

    def constants(program: Program) -> Iterator[int]:
        yield from (variable for variable, _ in program.constants)
        for step in program.steps:
            for body in step.bodies:
                yield from constants(body)

    program = traced.program
    return [*program.inputs[: traced.params], *constants(program)]


def _names(params: Any) -> list[str]:
    return [leaf.name for leaf in named_leaves(params)]


def _as_type(value: Any) -> jax.ShapeDtypeStruct:
    """The type of an input, without its value."""
    aval = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
