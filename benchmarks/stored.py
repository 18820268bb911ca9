"""Where figures come from, and where they are kept."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
from typing import Any

import jax

from gradprune_jax._files import replacing

FOLDER = pathlib.Path(__file__).parent


def machine() -> dict[str, Any]:
    """Where and when figures are measured."""
    device = jax.devices()[0]
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {device.device_kind}",
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
    }


def read(name: str) -> dict[str, Any]:
    """The figures of an earlier run, or none."""
    path = FOLDER / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, results: dict[str, Any], table: str) -> None:
    """Stores figures in `results/`, and their table between marks in `README.md`."""
    path = FOLDER / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    replace(path, json.dumps(results, indent=2) + "\n")
    insert(name, table)


def insert(name: str, table: str, readme: pathlib.Path | None = None) -> None:
    """Puts a table between its marks in a README, at the end if it has none."""
    readme = readme or FOLDER / "README.md"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = readme.read_text()
    if begin not in text:
        text = f"{text}\n{begin}\n{end}\n"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    replace(readme, f"{before}{begin}\n{table}\n{end}{after}")


def replace(file: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text)
