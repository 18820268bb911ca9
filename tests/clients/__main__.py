"""Run the tests of all clients, or of those named; of all, write the table.

python -m tests.clients [haiku keras ...]
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "clients.md"
ROWS = ROOT / "build" / "clients"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADER = (
    "package",
    "JAX",
    "what",
    "how the link goes in",
    "weights taken",
    "dense, of two axes or more",
    "first step, without and with the link",
)


class Outcome(NamedTuple):
    """How the tests of one client ended.

    Attributes:
      name: of the client.
      status: "passed", "failed" or "skipped".
      reason: why it was skipped.
    """

    name: str
    status: str
    reason: str = ""


def main(names: list[str]) -> int:
    """Run the clients, two at a time; return the exit status."""
    files = sorted(HERE.glob("*_client.py"))
    chosen = [file for file in files if not names or _name(file) in names]
    shutil.rmtree(ROWS, ignore_errors=True)
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        outcomes = list(pool.map(_run, chosen))
    skipped = [each for each in outcomes if each.status == "skipped"]
    failed = [each.name for each in outcomes if each.status == "failed"]
    if not names:
        _write_table(skipped)
    print(f"{len(outcomes)} clients, failed: {failed or 'none'}")
    return bool(failed)


def _run(file: pathlib.Path) -> Outcome:
    """Run the tests of one client, and print what they print."""
    name = _name(file)
    environment = _environment(file)
    made = _call([*environment, "python", "-c", ""])
    if made.returncode:
        reason = _reason(made.stderr)
        print(f"{name}: skipped, {reason}", flush=True)
        return Outcome(name, "skipped", reason)
    tests = ["python", "-m", "pytest", "-q", "-rs", "--disable-warnings"]
    tests += ["-o", "addopts=", "-o", "filterwarnings="]
    tests += ["-o", "python_files=*_client.py", "--confcutdir", str(HERE)]
    tests += ["-p", "no:cacheprovider", str(file)]
    ran = _call([*environment, *tests])
    print(f"{name}:\n{ran.stdout}", flush=True)
    return Outcome(name, "failed" if ran.returncode else "passed")


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in the root of the project, as if nothing else were there."""
    settings = dict(os.environ, JAX_PLATFORMS="cpu", CLIENT_ROWS=str(ROWS))
    settings["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    for setting in ("FIND_LINKS", "CONSTRAINT"):  # of pip, which uv does not read
        if f"PIP_{setting}" in os.environ:
            settings.setdefault(f"UV_{setting}", os.environ[f"PIP_{setting}"])
    return subprocess.run(
        command, cwd=ROOT, env=settings, text=True, capture_output=True, check=False
    )


def _environment(file: pathlib.Path) -> list[str]:
    """The command that runs another one with the packages that a file asks for."""
    comment = re.search(r"# /// script\n((?:#.*\n)+?)# ///", file.read_text())
    if comment is None:
        raise ValueError(f"{file}: has no `# /// script` that names its packages.")
    metadata = tomllib.loads(re.sub(r"^# ?", "", comment[1], flags=re.MULTILINE))
    return [
        *(sys.executable, "-m", "uv", "run", "--quiet", "--isolated", "--no-project"),
        *(
            "--python-preference",
            "only-system",
            "--python",
            metadata["requires-python"],
        ),
        *("--with", "pytest", "--with-editable", ".", "--with-requirements", str(file)),
    ]


def _reason(errors: str) -> str:
    """What uv says of an environment that cannot be made, in one line."""
    words = re.sub(r"[^\x20-\x7e]+", " ", errors).split()
    return " ".join(words)[:300] or "uv gives no reason"


def _write_table(skipped: list[Outcome]) -> None:
    """Put the rows between the marks of the page."""
    stored = ROWS / "rows.jsonl"
    lines = sorted(stored.read_text().splitlines()) if stored.exists() else []
    rows = [HEADER, ["-"] * len(HEADER), *(_cells(json.loads(line)) for line in lines)]
    rows += [(each.name, "", f"skipped: {each.reason}", *[""] * 4) for each in skipped]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def _cells(row: dict) -> tuple[str, ...]:
    """The cells of one row."""
    keys = ([k for k in path.split("/") if not k.isdigit()] for path in row["missed"])
    names = collections.Counter(each[-1] for each in keys)
    missed = [f"{count} called `{name}`" for name, count in names.items()]
    took = [row["without"], row["with_link"]]
    return (
        row["package"],
        row["jax"],
        row["what"],
        f"`{row['link']}`",
        f"{100 * row['taken']:.1f} %",
        ", ".join(missed) or "nothing",
        "" if None in took else f"{took[0]:.1f} s, {took[1]:.1f} s",
    )


def _name(file: pathlib.Path) -> str:
    return file.stem.removesuffix("_client")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
