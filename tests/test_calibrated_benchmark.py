"""The comparison of one-shot pruning runs at a tiny scale, and goes on where it was."""

import json

import pytest

pytest.importorskip("click")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("rich")

from click.testing import CliRunner

from benchmarks.calibrated import experiment, tables
from benchmarks.calibrated.__main__ import main


def test_methods_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "LEVELS", (experiment.Level("2:4", 0.5, (2, 4)),))
    monkeypatch.setattr(experiment, "SEQUENCES", 16)
    arguments = ("--quick", "--out", str(tmp_path))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "calibrated.json").read_text())
    assert len(results["errors"]) == 2 * 6
    for row in results["errors"]:
        assert 0 < row["SparseGPT"] < 1
    (row,) = results["rows"]
    assert (
        row["at once"].keys() == row["fine-tuned"].keys() == experiment.METHODS.keys()
    )
    text = (tmp_path / "calibrated.md").read_text()
    assert "| 2:4 |" in text
    assert "block1/attention/query/kernel" in text
    # A second run trains and prunes nothing.
    monkeypatch.setattr(experiment, "pruned", None)
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert json.loads((tmp_path / "calibrated.json").read_text()) == results


def test_the_order_is_counted():
    rows = [
        {"layer": "a", "magnitude": 0.3, "Wanda": 0.2, "SparseGPT": 0.1},
        {"layer": "b", "magnitude": 0.2, "Wanda": 0.3, "SparseGPT": 0.1},
    ]
    assert "in 1 of 2 layers" in tables.order(rows)
