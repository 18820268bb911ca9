"""The comparison of sparse training with pruning runs at a tiny scale."""

import json

import pytest

pytest.importorskip("click")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("rapidfuzz")

from click.testing import CliRunner

from benchmarks.paper import tradeoff
from benchmarks.sparse_training import methods, tables
from benchmarks.sparse_training.__main__ import main


def test_methods_are_trained_and_compared(tmp_path, monkeypatch):
    chosen = [
        method
        for method in methods.METHODS
        if method.name in ("gradual, ERK", "RigL", "SET", "static")
    ]
    monkeypatch.setattr(methods, "METHODS", chosen)
    monkeypatch.setattr(tables, "METHODS", chosen)
    arguments = ("perceptron", "--quick", "--out", str(tmp_path))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "perceptron.json").read_text())
    nonzero = {each["configuration"]: each["nonzero"] for each in records}
    for name in ("RigL", "SET", "static"):
        # Weights that were just grown are zero still, and so are some biases.
        assert nonzero[f"{name}, 90 %"] <= nonzero["gradual, ERK, 90 %"] + 5
    text = (tmp_path / "perceptron.md").read_text()
    assert "| RigL |" in text
    assert "- At 90 %: " in text


def test_an_order_is_told_from_means_and_spreads():
    def row(name, values):
        accuracy = {"accuracy": values}
        return tradeoff.Row(name, "trained sparse", 1, 1, {}, accuracy)

    found = {
        each.name: each
        for each in [
            row("static, 90 %", [80.0, 80.2]),
            row("SET, 90 %", [80.3, 80.1]),
            row("RigL, 90 %", [84.0, 84.2]),
            row("gradual, ERK, 90 %", [83.0, 83.1]),
        ]
    }
    said = tables._order(found, "90 %", "accuracy")
    assert said == "static <= SET < gradual, ERK < RigL"


def test_costs_are_measured(tmp_path):
    arguments = ("cost", "--quick", "--out", str(tmp_path))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "| RigL |" in (tmp_path / "cost.md").read_text()
