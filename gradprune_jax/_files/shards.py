"""Checkpoints in several safetensors files, as Hugging Face's libraries write them.

Beside the files, the shards, lies an index in JSON, `model.safetensors.index.json`:

    {"metadata": {"total_size": 96}, "weight_map": {"name": "model-00001-of-0000..."}}

It comes from anywhere, so nothing in it is believed: shards are files of its own
folder, each holds what the index says and nothing else, and the sizes add up.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from gradprune_jax._files.safetensors import open_safetensors
from gradprune_jax._files.stored import shortened

_INDEX = ".safetensors.index.json"
_SHARD = ".safetensors"

# The names of the files that make up such a checkpoint.
SHARDS_AND_INDEX = (f"*{_SHARD}", f"*{_INDEX}")

# More than any index has; that of a model with a million arrays has 100 MB.
_MOST_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Shards:
    """The safetensors files of one checkpoint.

    Attributes:
      folder: where they are.
      names: of the files, each once.
      index: the name of the index; None for one file that needs none.
      metadata: what the index says besides the size of all arrays.
    """

    folder: pathlib.Path
    names: tuple[str, ...]
    index: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> list[pathlib.Path]:
        """The files."""
        return [self.folder / name for name in self.names]


def holds_shards(path: pathlib.Path) -> bool:
    """Whether a path is a folder of safetensors files, or begins like an index."""
    if path.is_dir():
        return any(path.glob(f"*{_SHARD}")) or any(path.glob(f"*{_INDEX}"))
    with path.open("rb") as stream:
        begin = stream.read(256)
    # A safetensors file begins with the length of its header, whose first byte may be
    # that of a brace.
    is_length = int.from_bytes(begin[:8], "little") < 2**32
    return begin.lstrip().startswith(b"{") and not is_length


def open_shards(path: pathlib.Path) -> Shards:
    """Find the shards of a checkpoint, and check that they hold what the index says.

    Args:
      path: the index, or the folder of one index, or of one safetensors file.

    Returns:
      The shards, none of whose arrays is read yet.

    Raises:
      ValueError: if the index is damaged, or names a file that is missing, damaged,
        outside of its folder, or holds other arrays; naming file and array.
    """
    if not path.is_dir():
        return _open_index(path)
    indexes = sorted(path.glob(f"*{_INDEX}"))
    if len(indexes) == 1:
        return _open_index(indexes[0])
    shards = sorted(path.glob(f"*{_SHARD}"))
    if not indexes and len(shards) == 1:
        return Shards(path, (shards[0].name,))
    names = [each.name for each in indexes or shards]
    raise ValueError(
        f"{path}: holds {shortened(names)}"
        f"{'' if indexes else ' and no index'}; give one of them."
    )


def write_index(
    folder: pathlib.Path, shards: Iterable[str], name: str, metadata: Mapping[str, Any]
) -> None:
    """Write the index of shards that are written already.

    Args:
      folder: where they are.
      shards: the names of the files.
      name: of the index.
      metadata: what it says besides the size of all arrays.

    Raises:
      ValueError: if two shards hold arrays of the same name, an array and a part of a
        sparse one among them.
    """
    places: dict[str, str] = {}
    size = 0
    for shard in shards:
        arrays, _ = open_safetensors(folder / shard)
        twice = places.keys() & arrays
        if twice:
            raise ValueError(
                f"two arrays would both be stored as {_quoted(min(twice))}; rename one."
            )
        places |= dict.fromkeys(arrays, shard)
        size += sum(array.spec.nbytes for array in arrays.values())
    document = {
        "metadata": {**metadata, "total_size": size},
        "weight_map": dict(sorted(places.items())),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    (folder / name).write_text(f"{text}\n", encoding="utf-8")


def shard_name(position: int, count: int) -> str:
    """Return the name of a shard, as readers of such folders expect it.

    Examples:
      >>> shard_name(0, 2)
      'model-00001-of-00002.safetensors'
    """
    return f"model-{position + 1:05}-of-{count:05}{_SHARD}"


def _open_index(file: pathlib.Path) -> Shards:
    """Read an index, and check it against its shards."""
    places, metadata = _read_index(file)
    listed: dict[str, list[str]] = {}
    for name, shard in places.items():
        listed.setdefault(shard, []).append(name)
    size = 0
    for shard in sorted(listed):
        size += _check_shard(file, shard, listed[shard])
    said = metadata.pop("total_size", None)
    if said is not None and (said != size or isinstance(said, bool)):
        raise ValueError(
            f"{file}: says that all arrays have {_quoted(said)} bytes "
            f"(total_size), where {len(listed)} files from {sorted(listed)[0]!r} on "
            f"have {size}; a file is from another checkpoint, or correct the number."
        )
    return Shards(file.parent, tuple(sorted(listed)), file.name, metadata)


def _read_index(file: pathlib.Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Read the shard of every array, and the metadata."""
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{file}: is too large for an index of safetensors files.")
    try:
        document = json.loads(file.read_bytes(), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(f"{file}: is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{file}: is no index of safetensors, {error}.") from None
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict):
        raise ValueError(
            f'{file}: is no index of safetensors; it must have a "weight_map" that '
            "names the file of each array."
        )
    metadata = document.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ValueError(
            f'{file}: its "metadata" is no object but {_quoted(metadata)}.'
        )
    for name, shard in places.items():
        _check_name(file, name, shard)
    return places, metadata


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict, and refuse a key that comes twice, of which JSON keeps the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{_quoted(twice)} comes twice")
    return made


def _check_name(file: pathlib.Path, name: str, shard: Any) -> None:
    """Refuse what is no plain file name: an index must not lead out of its folder."""
    is_plain = isinstance(shard, str) and not any(sign in shard for sign in "/\\:\0")
    if not is_plain or not shard.endswith(_SHARD) or shard == _SHARD:
        raise ValueError(
            f"{file}: puts {_quoted(name)} into {_quoted(shard)}; it must be the "
            f"name of a {_SHARD} file in the folder of the index."
        )


def _check_shard(index: pathlib.Path, shard: str, listed: list[str]) -> int:
    """Check that a shard holds the arrays that are listed; return their bytes."""
    file = index.parent / shard
    more = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    claim = f"{index.name} says that it holds {_quoted(listed[0])}{more}."
    if not os.path.lexists(file) or not file.is_file():
        raise ValueError(f"{index.parent / shortened(shard)}: is missing; {claim}")
    try:
        arrays, _ = open_safetensors(file)
    except ValueError as error:
        raise ValueError(f"{error} {claim}") from None
    for name in listed:
        if name not in arrays:
            raise ValueError(
                f"{file}: lacks {_quoted(name)}, which {index.name} says that it holds."
            )
    unlisted = arrays.keys() - set(listed)
    if unlisted:
        raise ValueError(
            f"{file}: holds {_quoted(min(unlisted))}, which {index.name} does not list "
            "there."
        )
    return sum(array.spec.nbytes for array in arrays.values())


def _quoted(said: Any) -> str:
    """What an index says, in quotes, and cut so that errors stay readable."""
    return shortened(repr(said))
