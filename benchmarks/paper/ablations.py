"""The study of what matters in the method: the paper's remarks, put to the test."""

from __future__ import annotations

import dataclasses
import pathlib

import gradprune_jax as gp
from benchmarks.paper.image_studies import ACCURACY, plain_task, source
from benchmarks.paper.study import Remark, Study
from benchmarks.paper.task import Configuration, ScaleName

_GRADUAL = Remark(
    "The paper prunes gradually, so that the network can recover in between", "worse"
)
_UNIFORM = Remark(
    "The paper prunes every layer to the same sparsity, and compares that with nothing",
    None,
)
_REMARKS = {
    "one-shot, when the window begins": _GRADUAL,
    "one-shot, when the window ends": _GRADUAL,
    "linear": Remark(
        "The paper prunes fast at first, while redundant weights abound, and slowly in "
        "the end",
        "worse",
    ),
    "a mask update every 10 steps": Remark(
        "The paper's are 100 to 1,000 steps apart, and how often matters little there",
        "same",
    ),
    "a mask update every 1,000 steps": Remark(
        "From 100 to 1,000 steps between mask updates make a negligible difference in "
        "the paper, whose windows have many times more steps",
        "same",
    ),
    "window from the first step": Remark(
        "At too high a learning rate, says the paper, weights are pruned before they "
        "have converged to a good solution",
        "worse",
    ),
    "window to the last step": Remark(
        "At too small a learning rate, says the paper, there is no time to recover",
        "worse",
    ),
    "global allocation": _UNIFORM,
    "ERK allocation": _UNIFORM,
}


def ablations(scale: ScaleName, folder: pathlib.Path | None) -> Study:
    """What of the method matters, on the plain CNN at 95 %."""
    # Half the batch for twice the steps: mask updates a thousand steps apart need a
    # window of more than a thousand steps, or they are one-shot pruning.
    task, seeds = plain_task(scale, folder)
    if scale == "laptop":
        task = dataclasses.replace(task, steps=3_750, batch_size=32)
    sparsity = 0.9 if scale == "quick" else 0.95
    steps = task.steps
    begin, end = steps // 5, steps // 5 + 8 * steps // 15
    every = 2 if scale == "quick" else 100

    def one(name: str, schedule: gp.SparsitySchedule, **fields: str) -> Configuration:
        return Configuration(name, task, (gp.Rule(schedule, **fields),))

    def cubic(every: int, begin: int = begin, end: int = end) -> gp.SparsitySchedule:
        return gp.polynomial_schedule(sparsity, begin, end, every)

    middle = cubic(every)
    late = steps - 1 - (end - begin)
    configurations = [
        one("as in the paper", middle),
        one("one-shot, when the window begins", gp.one_shot_schedule(sparsity, begin)),
        one("one-shot, when the window ends", gp.one_shot_schedule(sparsity, end)),
        one("linear", gp.polynomial_schedule(sparsity, begin, end, every, power=1)),
        one("a mask update every 10 steps", cubic(10)),
        one("a mask update every 1,000 steps", cubic(1_000)),
        one("window from the first step", cubic(every, 0, end - begin)),
        one("window to the last step", cubic(every, late, steps - 1)),
        one("global allocation", middle, allocation="global"),
        one("ERK allocation", middle, allocation="erk"),
    ]
    if scale == "quick":
        configurations = configurations[:2]
    return Study(
        name="ablations",
        title="Ablations",
        metric=ACCURACY,
        configurations=tuple(configurations),
        seeds=seeds,
        source=source(task.dataset),
        checksum=task.dataset_checksum,
        remarks=_REMARKS,
        notes=(
            f"Plain CNN at a sparsity of {100 * sparsity:g} %; as in the paper is a "
            f"cubic schedule from step {begin:,} to {end:,} of {steps:,}, a mask "
            f"update every {every:,} steps, every layer at the same sparsity.",
        ),
    )
