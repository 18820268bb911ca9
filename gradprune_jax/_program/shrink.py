"""Shrink: a function and its parameters without the indices that change no output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.analysis import Analysis
from gradprune_jax._program.cut import Cut
from gradprune_jax._program.dead_code import Rules, analyse, find_cut
from gradprune_jax._program.groups import ChannelGroup, ChannelGroups, groups_of
from gradprune_jax._program.shrunk import Shrunk
from gradprune_jax._program.tracing import Trace, trace
from gradprune_jax._program.walks import run
from gradprune_jax._program.zeros import nonzero
from gradprune_jax._tree import check_arrays, check_values, named_leaves


def channel_groups(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    rules: Rules | None = None,
) -> ChannelGroups:
    """Finds which axes of which parameters are one dimension of a function.

    Args:
      fn: the function, `fn(params, *inputs)`.
      params: its parameters, a tree of arrays or of `jax.ShapeDtypeStruct`.
      *inputs: trees of arrays or shapes.
      rules: rules for primitives of your own, by the name of each; see
        `gradprune_jax.primitives`.

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
    leaves = named_leaves(params)
    check_arrays(leaves)
    traced = trace(fn, params, inputs)
    analysis = analyse(traced, rules)
    groups = groups_of(analysis, traced, [leaf.name for leaf in leaves])
    found = tuple(group for group, _ in groups)
    return ChannelGroups(found, tuple(analysis.unknown.items()))


def shrink(
    fn: Callable[..., Any],
    params: Any,
    *inputs: Any,
    rules: Rules | None = None,
) -> Shrunk:
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
      rules: rules for primitives of your own, by the name of each; see
        `gradprune_jax.primitives`.

    Returns:
      The smaller parameters and a function of them. Outputs are the same up to the
      rounding of shorter sums. Where there is nothing to cut they are bit for bit.

    Raises:
      ValueError: if parameters are traced, or shapes without values: whether they are
        zero must be known.

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
    check_arrays(leaves)
    check_values(leaves, "shrink")
    traced = trace(fn, params, inputs)
    values = [leaf.value for leaf in leaves]
    patterns = [*map(nonzero, values)]
    analysis = find_cut(traced, patterns, rules)
    program, cut = traced.program, Cut(analysis)
    smaller = list(map(cut.array, program.inputs, values))
    names = [leaf.name for leaf in leaves]
    groups = groups_of(analysis, traced, names)
    axes = [analysis.axes[variable] for variable in program.inputs[: len(values)]]
    return Shrunk(
        params=jax.tree.unflatten(jax.tree.structure(params), smaller),
        fn=_smaller_function(fn, params, inputs, names, patterns, traced, cut, rules),
        sizes={
            group.name: (group.size, group.size - int(analysis.cut[units].sum()))
            for group, units in groups
        },
        fixed={group.name: group.fixed for group, _ in groups if group.fixed},
        unknown=analysis.unknown,
        needed=_needed(analysis, traced, groups),
        shapes=dict(zip(names, map(np.shape, values), strict=True)),
        indices={
            name: tuple(map(cut.indices, own))
            for name, own in zip(names, axes, strict=True)
        },
    )


def _needed(
    analysis: Analysis, traced: Trace, groups: Sequence[tuple[ChannelGroup, list[int]]]
) -> dict[str, str]:
    """What needs units that are zero in all parameters, by the names of groups."""
    is_zero = np.ones(len(analysis.units), bool)
    for variable in traced.program.inputs[: traced.params]:
        for axis, along in zip(
            analysis.axes[variable], analysis.zeros[variable].along, strict=True
        ):
            resolved = analysis.units.resolve(axis)
            if resolved is not None:
                alive = resolved[~along]
                is_zero[alive[alive >= 0]] = False
    found = {}
    for group, units in groups:
        zeros = [unit for unit in units if is_zero[unit] and not analysis.cut[unit]]
        if zeros and not group.fixed:
            found[group.name] = analysis.why_needed(zeros[0])
    return {name: what for name, what in found.items() if what}


def _smaller_function(
    fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    names: Sequence[str],
    patterns: Sequence[np.ndarray | None],
    traced: Trace,
    cut: Cut,
    rules: Rules | None,
) -> Callable[..., Any]:
    """The function of smaller parameters, traced anew for inputs of other types."""
    full = jax.tree.map(_as_type, params)
    types = jax.tree.map(_as_type, (params, inputs))
    variables = traced.program.inputs[: traced.params]
    stays = [[*map(cut.stays, cut.analysis.axes[x])] for x in variables]
    shapes = [*map(cut.shape, variables)]

    def small(params: Any, *inputs: Any) -> Any:
        _check_params(params, full, names, shapes)
        given = jax.tree.map(_with_dtype, full, params), jax.tree.map(_as_type, inputs)
        own, own_cut = traced, cut
        if given != types:
            # Of other inputs fn may make another program.
            own = trace(fn, given[0], given[1])
            own_cut = Cut(find_cut(own, patterns, rules))
            own_cut.keep(own.program.inputs, stays)
            for name, variable, shape in zip(
                names, own.program.inputs, shapes, strict=False
            ):
                if own_cut.shape(variable) != shape:
                    raise ValueError(
                        f"for inputs of these shapes fn can't do with {shape} of "
                        f"{name!r}, as it could when it was shrunk; shrink it with "
                        "such inputs."
                    )
        outputs = run(own.program, jax.tree.leaves((params, inputs)), own_cut)
        return jax.tree.unflatten(own.outputs, outputs)

    return small


def _check_params(
    params: Any,
    full: Any,
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
) -> None:
    """Refuses parameters that are not those of the smaller function."""
    given: Any = jax.tree.structure(params)
    wanted: Any = jax.tree.structure(full)
    if given != wanted:
        raise ValueError(f"params is {given}; fn was shrunk with {wanted}.")
    for name, leaf, shape in zip(names, jax.tree.leaves(params), shapes, strict=True):
        if np.shape(leaf) != shape:
            raise ValueError(
                f"parameter {name!r} has the shape {np.shape(leaf)}; after the cut it "
                f"has {shape}. Give the `params` of the same `Shrunk`."
            )


def _with_dtype(full: jax.ShapeDtypeStruct, leaf: Any) -> jax.ShapeDtypeStruct:
    """The type of a whole parameter, with the dtype that its smaller one has now."""
    own = _as_type(leaf)
    return jax.ShapeDtypeStruct(full.shape, own.dtype, weak_type=own.weak_type)


def _as_type(value: Any) -> jax.ShapeDtypeStruct:
    """The type of an input, without its value."""
    aval = jax.typeof(value)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
