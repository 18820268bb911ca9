"""All trainings of a study: those that are stored are not run again."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess
from collections.abc import Hashable, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from benchmarks import stored
from benchmarks.paper import together, training
from benchmarks.paper.study import Study
from benchmarks.paper.task import Configuration
from gradprune_jax.demo.data import DataError

_REPOSITORY = pathlib.Path(__file__).parents[2]
_Training = tuple[Configuration, int]
_SPEED_OVER = 600.0  # seconds that the estimate of the time left is taken from


class Records:
    """What was measured, in one file that is replaced after each training."""

    def __init__(self, file: pathlib.Path) -> None:
        self._file = file

    def find(self, study: Study, configuration: Configuration, seed: int) -> Any:
        """The record of a training with just these settings, or None."""
        wanted = _settings(study, configuration, seed)
        matching = (each for each in self._read() if wanted.items() <= each.items())
        return next(matching, None)

    def add(
        self,
        study: Study,
        configuration: Configuration,
        seed: int,
        measured: dict[str, Any],
    ) -> None:
        """Stores a training."""
        records = self._read()  # with what another process has stored meanwhile
        records.append(_settings(study, configuration, seed) | measured)
        stored.replace(self._file, json.dumps(records, indent=1) + "\n")

    def _read(self) -> list[dict[str, Any]]:
        """All records; a file that is none is left as it is."""
        if not self._file.exists():
            return []
        try:
            return json.loads(self._file.read_text())
        except ValueError as error:
            raise DataError(
                f"{self._file}: is damaged ({error}); restore it, or move it away to "
                "train all again."
            ) from None


def run(
    study: Study, out: pathlib.Path, console: Console, *, side_by_side: bool = False
) -> list[dict[str, Any]]:
    """Trains what is not stored yet, under a progress bar.

    Args:
      study: what to train.
      out: the folder for `<study>.json`, and for the checkpoints of a training that
        is interrupted.
      console: to show the progress on.
      side_by_side: whether trainings that differ in sparsity alone are run together.

    Returns:
      The record of each configuration and seed, in the order of the study.
    """
    records = Records(out / f"{study.name}.json")
    provenance = _provenance()  # of the code as it is loaded now
    trainings = [
        (configuration, seed)
        for configuration in study.configurations
        for seed in range(study.seeds)
    ]
    missing = [each for each in trainings if records.find(study, *each) is None]
    # A step costs about as much as its network has parameters.
    costs = {each.name: _parameters(each) for each in study.configurations}
    total = sum(each.task.steps * costs[each.name] for each, _ in missing)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, speed_estimate_period=_SPEED_OVER) as bars:
        whole = bars.add_task(study.title, total=total, status="")
        finished = done = 0
        for group in _groups(missing, side_by_side):
            configurations, (seed, *_) = zip(*group, strict=True)
            first = configurations[0]
            cost = sum(costs[each.name] for each in configurations)
            status = f"training {done + 1} of {len(missing)}"
            bars.update(whole, status=status)
            names = ", ".join(each.name for each in configurations)
            steps = first.task.steps
            current = bars.add_task(
                f"{names}, seed {seed}", total=steps, status="compiling"
            )

            def show(
                step: int,
                loss: float,
                current: TaskID = current,
                before: int = finished,
                cost: int = cost,
            ) -> None:
                bars.update(current, completed=step, status=f"loss {loss:.3f}")
                bars.update(whole, completed=before + step * cost)

            folder = out / "checkpoints" / _name(study, first, seed)
            if len(group) > 1:
                measured = together.train(configurations, seed, show)
            else:
                measured = [training.train(first, seed, folder, show)]
            for each, found in zip(configurations, measured, strict=True):
                records.add(study, each, seed, found | provenance)
            shutil.rmtree(folder, ignore_errors=True)
            bars.remove_task(current)
            finished += steps * cost
            done += len(group)
    return [records.find(study, *each) for each in trainings]


def _groups(
    trainings: Sequence[_Training], side_by_side: bool
) -> list[list[_Training]]:
    """The trainings of one program each: one by one, or all that can be together."""
    groups: dict[Hashable, list[_Training]] = {}
    for number, (configuration, seed) in enumerate(trainings):
        common = together.kind(configuration) if side_by_side else None
        key = number if common is None else (common, seed)
        groups.setdefault(key, []).append((configuration, seed))
    return list(groups.values())


def _settings(study: Study, configuration: Configuration, seed: int) -> dict[str, Any]:
    """What a training is known by: all that a study chooses."""
    return {
        "configuration": configuration.name,
        "seed": seed,
        "source": study.source,
        "checksum": study.checksum,
        "settings": configuration.settings,
    }


def _name(study: Study, configuration: Configuration, seed: int) -> str:
    """A folder's name that no training with other settings has."""
    settings = json.dumps(_settings(study, configuration, seed)).encode()
    return f"{study.name}-{hashlib.sha256(settings).hexdigest()[:16]}"


def _parameters(configuration: Configuration) -> int:
    """The number of a network's parameters, from its shapes."""
    params, _ = jax.eval_shape(configuration.task.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _provenance() -> dict[str, Any]:
    """When, where and with which code a training is run."""

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(_REPOSITORY), *arguments)
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD") or "unknown"
        changes = git("status", "--porcelain", "--", "*.py", "pyproject.toml")
    except OSError:  # git is not installed
        commit, changes = "unknown", ""
    return stored.machine() | {"commit": commit + ("+changes" if changes else "")}
