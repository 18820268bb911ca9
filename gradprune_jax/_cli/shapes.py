"""Shapes of parameters, from a file of JSON or a checkpoint."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from gradprune_jax._cli.checkpoints import (
    CheckpointError,
    Path,
    nested,
    open_checkpoint,
    walk,
)
from gradprune_jax._files.safetensors import checked_shape


def open_shapes(file: pathlib.Path, params: str | None = None) -> dict[str, Any]:
    """The tree of shapes that a JSON file lists, or that a checkpoint's arrays have.

    In JSON a shape is a list of integers, of float32, or an object with `shape` and
    `dtype`, at a path of keys or under one name of keys joined by `/`.
    """
    if not file.is_file() or file.suffix.lower() != ".json":
        return open_checkpoint(file, params).shapes
    try:
        document = json.loads(file.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("but a JSON " + type(document).__name__)
        found = dict(walk(document, is_leaf=_is_shape))
        shapes = {
            tuple("/".join(path).split("/")): _shape(path, leaf)
            for path, leaf in found.items()
        }
    except RecursionError:
        raise CheckpointError(f"{file}: is nested too deeply.") from None
    except (ValueError, TypeError, SyntaxError) as error:
        raise CheckpointError(
            f'{file}: is no list of shapes, {error}; it must be like {{"Dense_0": '
            '{"kernel": [784, 10], "bias": {"shape": [10], "dtype": "bfloat16"}}}.'
        ) from None
    return nested(file, shapes)


def _is_shape(node: Any) -> bool:
    """Whether a node of the JSON is a shape, or a shape and a dtype."""
    if isinstance(node, list):
        return True
    return set(node) == {"shape", "dtype"} and isinstance(node["shape"], list)


def _shape(path: Path, written: Any) -> jax.ShapeDtypeStruct:
    """A shape from what JSON holds."""
    shape, dtype = written, "float32"
    if isinstance(written, dict):
        shape, dtype = written["shape"], written["dtype"]
    name = "/".join(path)
    if not isinstance(shape, list):
        raise ValueError(f"the shape of {name!r} is {shape!r}")
    return jax.ShapeDtypeStruct(checked_shape(name, shape), jnp.dtype(dtype))
