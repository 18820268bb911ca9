"""The studies by name."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from benchmarks.paper.ablations import ablations
from benchmarks.paper.image_studies import cnn, mlp, mobilenet
from benchmarks.paper.study import Study
from benchmarks.paper.task import ScaleName
from benchmarks.paper.text_studies import lstm, seq2seq, translation

# From a scale, and the folder of the data if it is not the bundled one.
STUDIES: dict[str, Callable[[ScaleName, pathlib.Path | None], Study]] = {
    "mlp": mlp,
    "cnn": cnn,
    "mobilenet": mobilenet,
    "lstm": lstm,
    "seq2seq": seq2seq,
    "translation": translation,
    "ablations": ablations,
}
