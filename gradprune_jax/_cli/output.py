"""Outputs: a safetensors file, or a folder of several, as the checkpoint has them."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Mapping

import click

from gradprune_jax._cli.checkpoints import Checkpoint
from gradprune_jax._files import (
    SHARDS_AND_INDEX,
    StoredArray,
    replacing,
    replacing_folder,
    safetensors_nbytes,
    write_index,
)
from gradprune_jax._tables import printable

WriteFile = Callable[[pathlib.Path, Mapping[str, StoredArray], Mapping[str, str]], None]

# What libraries that load a folder read besides the weights, and the licence.
_COMPANIONS = (
    "*config.json",
    "tokenizer*",
    "*tokens*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "configuration_*.py",
    "modeling_*.py",
    "processing_*.py",
    "tokenization_*.py",
    "LICENSE*",
    "NOTICE*",
)


def write_checkpoint(
    checkpoint: Checkpoint,
    out: pathlib.Path,
    force: bool,
    write_file: WriteFile,
    change: Callable[[Checkpoint], Checkpoint] | None = None,
) -> None:
    """Write a checkpoint as a whole or not at all.

    Of a folder the shards keep their names, the index gets the sizes of what was
    written, and configuration and tokenizer are copied.

    Args:
      checkpoint: what to write.
      out: the file or the folder.
      force: whether it may be replaced.
      write_file: writes one file, given its name, its arrays and their metadata.
      change: returns the checkpoint that is written; called when the place is known to
        be one that can be written to.
    """
    change = change or (lambda checkpoint: checkpoint)
    shards = checkpoint.shards
    if shards is None or _is_one_file(checkpoint, out):
        with replacing(out, force) as temporary:
            changed = change(checkpoint)
            write_file(temporary, changed.named, changed.metadata)
        return
    with replacing_folder(out, force, (*SHARDS_AND_INDEX, *_COMPANIONS)) as folder:
        parts = change(checkpoint).by_shard()
        for companion in _companions(shards.folder):
            shutil.copyfile(companion, folder / companion.name)
        for name, part in parts.items():
            write_file(folder / name, part.named, part.metadata)
        if shards.index is not None:
            write_index(folder, parts, shards.index, shards.metadata)


def dense_nbytes(checkpoint: Checkpoint, out: pathlib.Path) -> int:
    """The bytes of the dense files that `write_checkpoint` would make."""
    is_one = _is_one_file(checkpoint, out)
    parts = [checkpoint] if is_one else checkpoint.by_shard().values()
    return sum(
        safetensors_nbytes(
            {name: array.spec for name, array in part.named.items()}, part.metadata
        )
        for part in parts
    )


def nbytes(out: pathlib.Path) -> int:
    """The bytes of a file, or of the safetensors files of a folder."""
    files = out.glob("*.safetensors") if out.is_dir() else [out]
    return sum(file.stat().st_size for file in files)


def write_notice(out: pathlib.Path) -> None:
    """Print that a file or folder was written, with its size."""
    what = f"{nbytes(out):,} bytes" + (" of safetensors" if out.is_dir() else "")
    click.echo(f"Wrote {printable(str(out))} ({what})")


def _is_one_file(checkpoint: Checkpoint, out: pathlib.Path) -> bool:
    """Whether a checkpoint is written to one file, as the name of the file may say."""
    return checkpoint.shards is None or out.suffix == ".safetensors"


def _companions(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that belong to a model besides its weights."""
    found = {file for each in _COMPANIONS for file in folder.glob(each)}
    weights = {file for each in SHARDS_AND_INDEX for file in folder.glob(each)}
    return sorted(file for file in found - weights if file.is_file())
