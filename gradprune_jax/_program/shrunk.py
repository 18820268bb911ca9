"""Shrunk: a smaller function, its parameters, and what was cut out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gradprune_jax._program.cut import take
from gradprune_jax._tables import by, some_of, text_table
from gradprune_jax._tree import Leaf, named_leaves


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
      needed: for groups of which some indices are zero in every parameter, and were not
        cut: the sum to which they add something else than zero, by the group's name,
        such as a constant of the function's own.
      shapes: the shape that each parameter had before, by its name.
      indices: the indices that stayed along each of its axes; None where all did.
    """

    params: Any
    fn: Callable[..., Any]
    sizes: dict[str, tuple[int, int]]
    fixed: dict[str, str]
    unknown: dict[str, str]
    needed: dict[str, str]
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
        return take(leaf.value, self.indices[leaf.name])

    def __str__(self) -> str:
        rows = [
            (name, f"{old:,}", f"{new:,}", self.fixed.get(name, ""))
            for name, (old, new) in self.sizes.items()
        ]
        lines = [text_table(("dimension", "before", "after", "fixed by"), rows)]
        lines += [
            f"Zeros of {name} are needed by {what}."
            for name, what in self.needed.items()
        ]
        if self.unknown:
            met = [f"{name} ({source})" for name, source in self.unknown.items()]
            lines.append(f"Without a rule, so nothing was cut at: {', '.join(met)}.")
        return "\n".join(lines)


def _described(parameter: tuple[str, tuple[int, ...]]) -> str:
    name, shape = parameter
    return f"{name} {by(shape)}"
