"""Where figures are kept: raw in `results/`, and as tables in `README.md`."""

from __future__ import annotations

import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).parent


def write(name: str, results: dict[str, Any], table: str) -> None:
    """Stores figures, and their table between the marks of this name."""
    path = FOLDER / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    readme = FOLDER / "README.md"
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = readme.read_text().split(begin)
    _, after = rest.split(end)
    readme.write_text(f"{before}{begin}\n{table}\n{end}{after}")
