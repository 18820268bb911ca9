"""What the paper's tables say of networks is computed from their trainings."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("orbax.checkpoint")

from benchmarks.paper import overview, tables, throughput, tradeoff
from benchmarks.paper.study import Baseline, Metric, Remark
from tests.line import LINE


def make_row(name, nonzero, values, curve="large-sparse", steps=25):
    return tradeoff.Row(
        name=name,
        curve=curve,
        steps=steps,
        nonzero=nonzero,
        bytes={"dense": 4_000_000, "bitmask": 4 * nonzero, "csr": 8 * nonzero},
        metrics={"error": values},
    )


DENSE = make_row("dense", 1_000_000, [2.0, 2.2], "small-dense")
SMALL = make_row("small", 10_000, [6.0, 6.2], "small-dense")
ACCURACY = Metric("error", "score", "%", lower_is_better=False)


def test_a_pruned_network_is_compared_at_its_number_of_non_zeros():
    dense = [DENSE, SMALL]
    for nonzero, value, expected, verdict in [
        (100_000, 3.1, 4.1, "beats"),  # in the middle of the two, by the logarithm
        (100_000, 4.1, 4.1, "equals"),
        (100_000, 4.35, 4.1, "loses to"),
        (1_000, 5.0, 6.1, "beats"),  # the smallest has ten times as many
    ]:
        row = make_row("sparse", nonzero, [value, value])
        found = tradeoff.compare(LINE.metric, row, dense)
        assert found.dense == pytest.approx(expected)
        assert found.gain == pytest.approx(expected - value)
        assert found.spread == pytest.approx(0.2)
        assert found.verdict == verdict
        higher = tradeoff.compare(ACCURACY, row, dense)
        assert higher.gain == pytest.approx(value - expected)
    seeds = make_row("sparse", 100_000, [2.0, 5.0])
    assert tradeoff.compare(LINE.metric, seeds, dense).verdict == "equals"


def test_what_is_said_is_computed():
    rows = [
        DENSE,
        SMALL,
        make_row("dense, half as long", 1_000_000, [2.5, 2.5], "small-dense", steps=12),
        make_row("90 %", 100_000, [3.0, 3.2]),
        make_row("99.9 %", 1_000, [7.0, 7.0]),
        make_row("80 %, ERK", 200_000, [3.5, 3.5], "large-sparse, ERK"),
    ]
    assert tradeoff.statements(LINE, rows) == [
        "Long enough means that twice as many steps gain no more than the spread of "
        "seeds: from 12 steps to 25 the dense network (dense) goes from 2.50 to 2.10, "
        "beyond the spread of 0.20.",
        "Large-sparse beside small-dense of as many non-zeros: beats it at 90 %, loses "
        "to it at 99.9 %.",
        "Large-sparse with 10 times fewer non-zeros (0.1 M) than the dense network: "
        "error 3.10, +1.00 (+47.6 % of 2.10).",
        "Large-sparse, ERK beside small-dense of as many non-zeros: equals it at 80 % "
        "(within the spread of seeds).",
        "Large-sparse, ERK with 5 times fewer non-zeros (0.2 M) than the dense "
        "network: error 3.50, +1.40 (+66.7 % of 2.10).",
    ]
    assert tradeoff.statements(LINE, rows[:1]) == []
    (alone,) = tradeoff.statements(LINE, [DENSE, rows[3]])
    assert alone.startswith("Large-sparse with 10 times fewer")
    lines = tables._table(LINE, rows).splitlines()
    assert lines[0].endswith("| small-dense of as many | gain |")
    assert lines[5].startswith("| 90 % | 100,000 |")
    assert lines[5].endswith("| 3.10 | +1.00 | 0.20 | 4.10 | +1.00 |")
    assert lines[7].endswith("| 3.50 | +1.40 | 0.00 | 3.50 | (-0.00) |")
    assert lines[4].endswith("| 2.50 | +0.40 | 0.00 |  |  |")
    curves = tradeoff.curves(rows)
    assert [row.name for row in curves["small-dense"]] == ["dense", "small"]
    assert [row.name for row in curves["large-sparse, ERK"]] == ["dense", "80 %, ERK"]


def test_another_model_is_compared_with():
    study = dataclasses.replace(LINE, baseline=Baseline("a guess", 2.0, "it is new"))
    rows = [make_row("dense", 10, [2.2], "small-dense"), make_row("90 %", 1, [4.0])]
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
    assert "spread" not in text
    assert "25 steps, one seed, so that small differences may be chance; " in text


def test_products_are_counted_as_often_as_a_loop_runs():
    rows, matrix = jnp.ones((3, 4, 5)), jnp.ones((5, 5))

    def loop(rows, matrix):
        return jax.lax.scan(lambda carry, row: (carry, row @ matrix), 0, rows)

    traced = jax.make_jaxpr(jax.jit(loop))(rows, matrix)
    assert throughput.products(traced.jaxpr) == 2 * 3 * 4 * 5 * 5
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 7))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    traced = jax.make_jaxpr(convolve)(images, kernel)
    assert throughput.products(traced.jaxpr) == 2 * (2 * 4 * 4 * 7) * (3 * 3 * 3)


def test_all_studies_are_in_one_picture():
    rows = [
        DENSE,
        SMALL,
        make_row("90 %", 100_000, [3.0, 3.2]),
        make_row("90 %, ERK", 100_000, [2.6, 2.6], "large-sparse, ERK"),
    ]
    figure = overview.draw([(LINE, rows)] * 4)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Line: error"] * 4
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["small-dense"].get_xdata()) == [1, 100]
    np.testing.assert_allclose(
        lines["large-sparse, ERK"].get_ydata(), [0, 100 * 0.5 / 2.1], atol=1e-9
    )
    assert overview.sentence(LINE, rows) == (
        "**Line**, 1 million weights, error 2.10: with 10 times fewer non-zeros 3.10, "
        "2.60 by ERK; a dense network of as many has 4.10."
    )


def test_a_study_is_shown_once_all_of_its_trainings_are_stored(tmp_path):
    assert overview.stored_rows(LINE, tmp_path) is None
    records = [
        {
            "configuration": configuration.name,
            "steps": 25,
            "nonzero": 6,
            "bytes": {"dense": 120},
            "metrics": {"error": 1.0},
        }
        for configuration in LINE.configurations
        for _ in range(LINE.seeds)
    ]
    file = tmp_path / f"{LINE.name}.json"
    file.write_text(json.dumps(records[1:]))
    assert overview.stored_rows(LINE, tmp_path) is None
    file.write_text(json.dumps(records))
    assert [row.name for row in overview.stored_rows(LINE, tmp_path)] == [
        each.name for each in LINE.configurations
    ]
