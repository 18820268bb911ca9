"""The benchmarks run, and their tables say what was measured."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from benchmarks import inference, patterns, stored
from benchmarks.paper.images import ImageTask
from benchmarks.paper.task import Configuration
from benchmarks.program import Program
from benchmarks.shrink import accuracy, networks, speed
from benchmarks.speed import compilation, mask_update, rivals, step, tables
from gradprune_jax.demo import data
from gradprune_jax.demo.models import LinenNetwork


def test_a_case_is_measured_and_shown():
    case = mask_update.Case(2, (30, 20), "bfloat16", "mostly zero")
    row = mask_update.measure(case, repeats=1)
    assert row["weights"] == 1_200
    assert row["state_bytes_per_weight"] == pytest.approx(1, abs=0.01)
    assert min(row["gradprune_ms"], row["numpy_ms"], row["one_read_ms"]) > 0
    one = mask_update.measure(mask_update.Case(1, (30, 20)), repeats=1)
    results = {
        "mask_update": [row, one],
        "step": [step.measure("the optimizer alone", repeats=1)],
        "compile": [compilation.measure("two", {"a": (9, 8), "b": (9, 8)}, {})],
        "machine": "here",
        "date": "today",
        "jax": jax.__version__,
    }
    table = tables.markdown(results)
    assert "| mostly zero | 2 x 30 x 20 | bfloat16 |" in table
    assert f"| the optimizer alone | {10_000_000:,} |" in table
    assert "| two | 2 | 1 |" in table
    assert json.loads(json.dumps(results)) is not None


def test_the_trees_that_are_compiled_are_of_the_published_sizes():
    weights = {
        name: sum(int(np.prod(shape)) for shape in shapes().values())
        for name, (shapes, _) in compilation.TREES.items()
    }
    assert weights["ResNet-50"] == pytest.approx(25.5e6, rel=0.01)
    assert weights["DenseNet-121"] == pytest.approx(7.9e6, rel=0.02)
    assert weights["BERT-base"] == pytest.approx(108.4e6, rel=0.01)
    assert weights["decoder of 28 layers"] == pytest.approx(596e6, rel=0.01)


def test_sparse_products_are_measured_and_shown():
    row = inference.measure((24, 16), batch=2, sparsity=0.75, repeats=1)
    assert min(row["dense"], row["bcoo"], row["bcsr"]) > 0
    results = {"products": [row], "repeats": 1} | stored.machine()
    assert "| 24 x 16 | 2 | 75 % |" in inference.table(results)


def test_the_rivals_make_the_same_mask():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 25)).astype(np.float32)
    expected = rivals.numpy_mask(weights, 100)
    assert expected.sum() == 100
    np.testing.assert_array_equal(rivals.argsort_mask(weights, 100), expected)
    np.testing.assert_array_equal(rivals.top_k_mask(weights, 100), expected)


@pytest.mark.skipif(not rivals.HAS_TORCH, reason="torch is not installed")
def test_torch_makes_the_same_mask_again_and_again():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(40, 25)).astype(np.float32)
    run = rivals.torch_pruning(weights, 0.9)
    for _ in range(2):
        np.testing.assert_array_equal(run() != 0, rivals.numpy_mask(weights, 100))


def test_every_family_is_drawn_and_every_size_is_measured():
    cases = mask_update.cases(10**8)
    assert {case.family for case in cases} == set(mask_update.FAMILIES)
    sizes = {(case.leaves, case.weights) for case in cases}
    assert {(1, 10**n) for n in (5, 6, 7, 8)} < sizes
    assert {(10, 10**7), (200, 10**7)} < sizes
    assert max(case.weights for case in mask_update.cases(10**6)) == 10**6


def test_every_configuration_of_the_patterns_fits_the_network():
    params = jax.eval_shape(
        LinenNetwork().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1), jnp.uint8)
    )["params"]
    made = patterns.configurations(lambda s: gp.one_shot_schedule(s, 0))
    rows = []
    for name, rules in made.items():
        if rules is not None:
            assert gp.plan(rules, params).pruned
        sparsity = {f"{layer}/kernel": 0.5 for layer in patterns.LAYERS}
        rows.append(
            {
                "name": name,
                "seed": 0,
                "steps": 4,
                "correct": 90 if name == "dense" else 80,
                "test_images": 100,
                "sparsity": sparsity | {"total": 0.5},
                "dead_channels": {"conv1/kernel": 3},
            }
        )
    table = patterns.table({"runs": rows, "machine": "m", "date": "d", "jax": "j"})
    assert "| dense | 90.00 | +0.00 | 0.00 | 50.0 |" in table
    assert "| 2:4, but for conv1 | 80.00 | -10.00 |" in table


def test_tables_are_written_between_their_marks_or_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nbelow\n")
    stored.write("speed", {"figure": 1}, "new")
    assert readme.read_text() == (
        "above\n<!-- speed: begin -->\nnew\n<!-- speed: end -->\nbelow\n"
    )
    assert json.loads((tmp_path / "results" / "speed.json").read_text()) == {
        "figure": 1
    }
    for table in ("more", "most"):
        stored.insert("translation", table)
    assert readme.read_text().endswith(
        "below\n\n<!-- translation: begin -->\nmost\n<!-- translation: end -->\n"
    )


def test_the_collectives_of_a_program_are_read_from_its_text():
    program = """
%body.1 (p: u32[2]) -> u32[2] {
  %r = (u32[2]{0}, u32[2,3]{1,0}) all-reduce(%a, %b), to_apply=%add
}

%condition.1 (p: u32[2]) -> pred[] {
  ROOT %c = pred[] compare(%a, %b), direction=LT
}

%add (x: u32[], y: u32[]) -> u32[] {
  ROOT %s = u32[] add(%x, %y)
}

ENTRY %main (p: u32[2]) -> u32[2] {
  %s = bf16[128]{0} all-reduce-start(%a), to_apply=%add
  %g = u32[4]{0} all-gather(%s), dimensions={0}
  ROOT %w = u32[2]{0} while(%p), condition=%condition.1, body=%body.1
}
"""
    found = Program.parse(program).communication()
    assert found["collectives"]["all-reduce"] == {"number": 2, "bytes": 32 + 256}
    assert found["collectives"]["all-gather"] == {"number": 1, "bytes": 16}
    assert found["collectives"]["all-to-all"]["number"] == found["sorts"] == 0
    assert found["largest_all_reduce_bytes"] == 256
    assert found["loops"] == [{"all_reduces": 1, "bytes": 32}]


def test_a_network_is_cut_timed_and_shown():
    made = networks.case("the demo's CNN")
    rows = speed.measure(made, "the demo's CNN", batches=(2,))
    assert [row["parameters_left"] for row in rows] == [207_178, 52_266]
    for row in rows:
        assert row["flops_left"] < row["flops"]
        assert row["error"] < 1e-5
        assert min(row["ms"], row["ms_left"]) > 0
    assert "| the demo's CNN | 2 | 50 % | 824,970 -> 207,178 |" in speed.table(rows)


def test_the_networks_that_are_cut_are_of_the_published_sizes():
    def size(name):
        model, shape, tokens = networks.NETWORKS[name]
        batch = jax.ShapeDtypeStruct((1, *shape), jnp.int32 if tokens else jnp.float32)
        options = {"training": False} if name == "MobileNet v1" else {}
        init = functools.partial(model().init, **options)
        params = jax.eval_shape(init, jax.random.key(0), batch)["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    assert size("ResNet-50") == pytest.approx(25.56e6, rel=0.001)
    assert size("MobileNet v1") == pytest.approx(4.23e6, rel=0.01)
    assert size("BERT-base") == pytest.approx(108.9e6, rel=0.01)


def test_accuracies_are_measured_once_and_shown(tmp_path, monkeypatch):
    def one_row(dataset, epochs):
        task = ImageTask(networks.ResNet((4,), (1,)), dataset, steps=2, batch_size=32)
        cut = {"parameters_left": 1_234, "flops_left": 56.0}
        return [accuracy.Row("dense", Configuration("dense", task), cut)]

    monkeypatch.setattr(accuracy, "rows", one_row)
    monkeypatch.setattr(accuracy, "SEEDS", (0, 1))
    said = []
    records = accuracy.run(data.load().limit(64), tmp_path, said.append)
    assert said == ["seed 0, dense", "seed 1, dense"]
    assert all(0 <= record["metrics"]["accuracy"] <= 100 for record in records)
    assert "| dense | 1,234 | 100 % |" in accuracy.table(records)
    assert accuracy.run(data.load().limit(64), tmp_path, said.append) == records
    assert len(said) == 2  # trained once
