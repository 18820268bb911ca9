"""Eight devices as a mesh, and what a compiled program moves between them."""

import functools
import re

import jax
import numpy as np
from jax.sharding import AxisType

MOVING = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "sort(")


@functools.cache
def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)


def all_reduced_words(program):
    """How many numbers each all-reduce of a program carries."""
    words = []
    for types in re.findall(r"= (.*?) all-reduce(?:-start)?\(", program):
        shapes = re.findall(r"[a-z]+\d+\[([\d,]*)\]", types)
        words.append(
            sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes)
        )
    return words
