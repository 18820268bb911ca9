"""Checkpoints of orbax, leaf by leaf."""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import tree_util

from gradprune_jax._cli.faults import words_of
from gradprune_jax._files import Spec, StoredArray, checked_shape

# What orbax writes beside the arrays of a tree.
_TREE = "_METADATA"

# Every restore goes over the whole tree, so small arrays are read together.
_GROUP_BYTES = 2**26


def open_folder(folder: pathlib.Path) -> dict[tuple[str, ...], StoredArray]:
    """Open a folder: return its arrays by path, none of them read yet.

    Args:
      folder: of one tree, or of one step of a `CheckpointManager` with one tree.

    Returns:
      The arrays.

    Raises:
      ValueError: if the folder is none of these, or orbax cannot read it.
    """
    # Users need neither of these logs: orbax writes about its own work, and asyncio
    # about every read that was under way when another one failed.
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    folder = _tree_folder(folder.resolve())
    specs = {}
    paths = {}
    leaves = tree_util.tree_leaves_with_path(_metadata(folder))
    for position, (keys, leaf) in enumerate(leaves):
        shape, dtype = (getattr(leaf, name, None) for name in ("shape", "dtype"))
        if shape is not None and dtype is not None:
            path = tuple(tree_util.keystr((key,), simple=True) for key in keys)
            shape = checked_shape("/".join(path), shape)
            specs[position] = Spec(shape, np.dtype(dtype))
            paths[position] = path
    return {
        paths[position]: StoredArray(
            specs[position], functools.partial(_read, folder, group, position)
        )
        for group in _groups(
            dict(sorted(specs.items(), key=lambda item: paths[item[0]]))
        )
        for position in group
    }


def _tree_folder(folder: pathlib.Path) -> pathlib.Path:
    """Find the folder of the tree: the folder itself, or the one below a step."""
    if (folder / _TREE).exists():
        return folder
    below = sorted(file.parent.name for file in folder.glob(f"*/{_TREE}"))
    if len(below) == 1:
        return folder / below[0]
    if below:
        raise ValueError(f"holds the trees {below}; choose one: {folder / below[0]}.")
    steps = sorted(
        {file.parents[1].name for file in folder.glob(f"*/*/{_TREE}")},
        key=lambda name: (len(name), name),
    )
    if steps:
        raise ValueError(f"holds the steps {steps}; choose one: {folder / steps[-1]}.")
    raise ValueError("is no checkpoint of orbax.")


@functools.lru_cache(maxsize=2)
def _metadata(folder: pathlib.Path) -> Any:
    """Return the tree of a checkpoint, with metadata in the place of arrays."""
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(folder)
            found = getattr(found, "item_metadata", found)  # older: the tree alone
    except Exception as error:  # orbax, tensorstore and etils have no common error
        raise ValueError(f"orbax cannot read it: {_first_line(error)}.") from None
    if found is None:
        raise ValueError("orbax cannot read it: its metadata or arrays are damaged.")
    return found.tree


def _groups(specs: Mapping[int, Spec]) -> Iterator[tuple[int, ...]]:
    """Divide the positions of arrays into groups that are read together."""
    group: list[int] = []
    nbytes = 0
    for position, spec in specs.items():
        if group and nbytes + spec.nbytes > _GROUP_BYTES:
            yield tuple(group)
            group, nbytes = [], 0
        group.append(position)
        nbytes += spec.nbytes
    yield tuple(group)


def _read(folder: pathlib.Path, group: tuple[int, ...], position: int) -> np.ndarray:
    """Read one array; others of its group are kept until another group is read."""
    if len(group) == 1:
        return _restore(folder, group)[position]
    return _restore_group(folder, group)[position]


@functools.lru_cache(maxsize=1)
def _restore_group(
    folder: pathlib.Path, group: tuple[int, ...]
) -> dict[int, np.ndarray]:
    """Restore a group, and keep it."""
    return _restore(folder, group)


def _restore(folder: pathlib.Path, group: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Restore some arrays by position; orbax leaves the others where they are."""
    import orbax.checkpoint as ocp

    tree = _metadata(folder)
    leaves = jax.tree.leaves(tree)
    treedef: Any = jax.tree.structure(tree)
    wanted = [ocp.PLACEHOLDER] * len(leaves)
    for position in group:
        leaf = leaves[position]
        wanted[position] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    arguments = [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=treedef.unflatten(wanted),
                    restore_args=treedef.unflatten(arguments),
                ),
            )
    except Exception as error:
        raise ValueError(f"orbax cannot read it: {_first_line(error)}.") from None
    arrays = jax.tree.leaves(restored)
    return {position: np.asarray(arrays[position]) for position in group}


def _first_line(error: Exception) -> str:
    """Return the first line of an error; orbax appends pages of advice."""
    return words_of(error).splitlines()[0]
