"""What the paper's tables say of networks is computed from their trainings."""

import dataclasses

from benchmarks.paper import tables, tradeoff
from benchmarks.paper.task import Baseline, Metric, Remark
from tests.line import LINE


def make_row(name, nonzero, values, *, is_sparse=False):
    return tradeoff.Row(
        name=name,
        is_sparse=is_sparse,
        nonzero=nonzero,
        bytes={"dense": 4_000_000, "bitmask": 4 * nonzero, "csr": 8 * nonzero},
        metrics={"error": values},
        seconds=1.0,
    )


def test_what_is_said_is_computed():
    rows = [
        make_row("dense", 1_000_000, [2.0, 2.2]),
        make_row("small", 10_000, [6.0, 6.2]),
        make_row("90 %", 100_000, [3.0, 3.2], is_sparse=True),
        make_row("99.9 %", 1_000, [7.0, 7.0], is_sparse=True),
    ]
    assert tradeoff.statements(LINE, rows) == [
        "At equal non-zeros large-sparse (90 %, 0.1 M non-zeros) beats small-dense: "
        "error 3.10 against 4.10, interpolated.",
        "Large-sparse (99.9 %, 0.001 M non-zeros) has 10.0 times fewer non-zeros than "
        "the smallest dense network (small) and is worse: error 7.00 against 6.10.",
        "With 10 times fewer non-zeros (0.1 M) than the dense network (dense): error "
        "3.10, interpolated, +1.00.",
    ]
    assert tradeoff.statements(LINE, rows[:1]) == []
    fewest = [rows[0], make_row("80 %", 200_000, [2.5], is_sparse=True)]
    assert tradeoff.statements(LINE, fewest) == [
        "With 5 times fewer non-zeros (0.2 M) than the dense network (dense): error "
        "2.50, +0.40.",
    ]
    better = Metric("error", "score", "%", lower_is_better=False)
    said = tradeoff.statements(dataclasses.replace(LINE, metric=better), rows)
    assert "loses to small-dense: score 3.10 % against 4.10 %," in said[0]
    for nonzero, value in [(100_000, 4.0), (1_000, 6.0)]:
        close = make_row("sparse", nonzero, [value, value + 0.15], is_sparse=True)
        said = tradeoff.statements(LINE, [*rows[:2], close])
        assert said[0].endswith("; within the spread of seeds.")


def test_another_model_is_compared_with():
    study = dataclasses.replace(LINE, baseline=Baseline("a guess", 2.0, "it is new"))
    rows = [make_row("dense", 10, [2.2]), make_row("90 %", 1, [4.0], is_sparse=True)]
    assert tables._sentences(study, rows)[0] == (
        "The dense network (dense) does not beat a guess: error 2.20 against 2.00: it "
        "is new."
    )
    rows[0].metrics["error"][0] = 1.9
    assert tables._sentences(study, rows)[0] == (
        "The dense network (dense) beats a guess: error 1.90 against 2.00."
    )


def test_ablations_are_compared_with_the_first(tmp_path):
    configurations = tuple(
        dataclasses.replace(LINE.configurations[1], name=name)
        for name in ("as in the paper", "linear")
    )
    study = dataclasses.replace(
        LINE,
        configurations=configurations,
        remarks={"linear": Remark("Linear is worse", expects="worse")},
    )
    fields = ("source", "commit", "machine", "date", "jax")
    records = [
        {
            "configuration": configuration.name,
            "parameters": 30,
            "nonzero": 6,
            "bytes": {"dense": 120, "bitmask": 28, "csr": 72},
            "metrics": {"error": error},
            "seconds": 60.0,
            "steps": 25,
            **dict.fromkeys(fields, "x"),
        }
        for configuration, error in zip(configurations, (1.0, 1.5), strict=True)
    ]
    said = "- Linear: +0.50, beyond the spread of seeds (0.00). Linear is worse: "
    assert said + "that holds here." in tables.markdown(study, records, "command", "")
    for error, expects, verdict in [
        (0.5, "worse", "here the opposite shows"),
        (1.0, "worse", "that does not show here"),
        (1.5, "same", "here the opposite shows"),
        (1.0, "same", "that holds here"),
    ]:
        records[1]["metrics"]["error"] = error
        study.remarks["linear"] = Remark("So it is", expects=expects)
        text = tables.markdown(study, records, "command", "")
        assert f"So it is: {verdict}." in text
    study.remarks["linear"] = Remark("So it is", expects=None)
    assert "(0.00). So it is.\n" in tables.markdown(study, records, "command", "")
    alone = dataclasses.replace(study, seeds=1)
    text = tables.markdown(alone, records, "command", "")
    assert "- Linear: +0.00, of one seed: not enough to tell.\n" in text
