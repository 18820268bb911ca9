"""The paper's studies run at a tiny scale, and compare like with like."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import pytest

import gradprune_jax as gp

pytest.importorskip("click")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("rapidfuzz")
pytest.importorskip("sacrebleu")
pytest.importorskip("matplotlib")

from click.testing import CliRunner

from benchmarks import stored
from benchmarks.paper import runs, studies
from benchmarks.paper.__main__ import main

RESULTS = stored.FOLDER / "paper" / "results"
TRANSLATION = ("seq2seq", "--task", "translation")


def run(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "mobilenet", "lstm", "seq2seq", "ablations"]
)
def test_a_study_runs_and_is_not_run_again(name, tmp_path):
    before = (stored.FOLDER / "README.md").read_text()
    first = run(name, "--quick", "--out", str(tmp_path))
    assert first.exit_code == 0, first.output
    folder = tmp_path / "quick"
    written = {f"{name}.json", f"{name}.md", f"{name}.png", "checkpoints"}
    if name == "ablations":  # of one size: nothing to draw
        written.remove("ablations.png")
    assert {file.name for file in folder.iterdir()} == written
    records = json.loads((folder / f"{name}.json").read_text())
    study = studies.STUDIES[name]("quick", None)
    for record, configuration in zip(records, study.configurations, strict=True):
        assert record["configuration"] == configuration.name
        assert record["bytes"]["bitmask"] <= record["bytes"]["dense"]
        # But for a few biases that are still zero, dense networks have no zeros.
        is_sparse = record["nonzero"] < 0.9 * record["parameters"]
        assert is_sparse == bool(configuration.rules)
    text = (folder / f"{name}.md").read_text()
    assert f"| {study.configurations[-1].name} |" in text
    assert f"`python -m benchmarks.paper {name} --quick`" in text
    again = run(name, "--quick", "--out", str(tmp_path))
    assert again.exit_code == 0
    assert json.loads((folder / f"{name}.json").read_text()) == records
    assert (stored.FOLDER / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("name", "seeds", "dense", "sparsities", "curves"),
    [
        ("mlp", 3, 5, (0.75, 0.8, 0.9, 0.95, 0.98), ("", ", ERK", ", global")),
        ("cnn", 3, 4, (0.5, 0.75, 0.875, 0.9, 0.95), ("", ", ERK")),
        ("mobilenet", 2, 4, (0.5, 0.75, 0.9, 0.95), ("",)),
        ("lstm", 2, 4, (0.8, 0.85, 0.9, 0.95), ("",)),
        ("seq2seq", 2, 5, (0.75, 0.85, 0.9, 0.95), ("",)),
    ],
)
def test_a_study_compares_like_with_like(name, seeds, dense, sparsities, curves):
    study = studies.STUDIES[name]("laptop", None)
    assert study.seeds == seeds
    configurations = list(study.configurations)
    shorter = configurations.pop(dense)
    assert len({each.task.steps for each in configurations}) == 1
    assert shorter.task == dataclasses.replace(
        configurations[0].task, steps=configurations[0].task.steps // 2
    )
    sizes = [runs._parameters(each) for each in configurations[:dense]]
    assert sizes == sorted(sizes, reverse=True)
    assert {each.curve for each in configurations[:dense]} == {"small-dense"}
    found = [
        (each.curve, each.rules[-1].schedule.final_sparsity)
        for each in configurations[dense:]
    ]
    assert found == [
        (f"large-sparse{curve}", sparsity)
        for curve in curves
        for sparsity in sparsities
    ]
    # There is a dense network of about as few weights as the sparsest one has.
    params, _ = jax.eval_shape(configurations[0].task.init, jax.random.key(0))
    sparsest = configurations[dense + len(sparsities) - 1]
    plan = gp.plan(list(sparsest.rules), params)
    pruned = sum(leaf.size - leaf.kept for leaf in plan.leaves if leaf.rule is not None)
    assert sizes[-1] < 1.2 * (sizes[0] - pruned)


@pytest.mark.parametrize(
    "file",
    sorted(RESULTS.glob("*/*.json")),
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_published_records_are_those_of_the_studies(file):
    """Else a study would be trained again, and its table not be that of its code."""
    study = studies.STUDIES[file.stem](file.parent.name, None)
    settings = {each.name: each.settings for each in study.configurations}
    for record in json.loads(file.read_text()):
        assert record["settings"] == settings[record["configuration"]]
        assert record["seed"] < study.seeds


def test_ablations_differ_in_one_setting_each():
    made = studies.ablations("laptop", None)
    assert list(made.remarks) == [each.name for each in made.configurations[1:]]
    params, _ = jax.eval_shape(made.configurations[0].task.init, jax.random.key(0))
    kept = {
        configuration.name: gp.plan(
            list(configuration.rules), params, total_steps=configuration.task.steps
        ).kept
        for configuration in made.configurations
    }
    uniform = kept["as in the paper"]
    assert all(abs(each[0] - uniform[0]) <= 7 for each in kept.values()), kept
    schedules = {each.name: each.rules[0].schedule for each in made.configurations}
    steps = {name: schedule.update_steps for name, schedule in schedules.items()}
    assert steps["a mask update every 1,000 steps"] == (750, 1_750, 2_750)
    assert len(steps["as in the paper"]) == 21
    assert len(steps["a mask update every 10 steps"]) == 201
    assert len(set(schedules.values())) == len(schedules) - 2  # but for allocations


def test_the_papers_sizes():
    key = jax.random.key(0)
    made = {each.name: each for each in studies.lstm("paper", None).configurations}
    params, _ = jax.eval_shape(made["90 %"].task.init, key)
    assert runs._parameters(made["large"]) == 66_022_000
    assert runs._parameters(made["medium"]) == 19_775_200
    assert runs._parameters(made["small"]) == 4_651_600
    plan = gp.plan(list(made["90 %"].rules), params)
    assert {leaf.path for leaf in plan.leaves if leaf.rule is None} == {
        leaf.path for leaf in plan.leaves if leaf.path.endswith("bias")
    }
    mobilenet = studies.mobilenet("paper", None).configurations[-1]
    network = dataclasses.replace(mobilenet.task.network, classes=1_000)
    shapes = jax.eval_shape(
        lambda: network.init(key, jnp.zeros((1, 28, 28, 1)), training=True)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 4_231_400
    params, _ = jax.eval_shape(mobilenet.task.init, key)
    dense = {
        each.path
        for each in gp.plan(list(mobilenet.rules), params).leaves
        if each.rule is None and each.path.endswith("kernel")
    }
    assert len(dense) == 14  # the first convolution and thirteen depthwise ones


def test_wrong_arguments_are_refused(tmp_path):
    result = run(*TRANSLATION, "--quick")
    assert result.exit_code == 1
    assert "give their folder with --data-dir" in result.output
    for arguments in [
        ("cnn", "--task", "translation"),
        ("cnn", "--quick", "--scale", "paper"),
        ("cnn", "--quick", "--publish"),
    ]:
        assert run(*arguments).exit_code == 2
    (tmp_path / "file").write_text("")
    result = run("cnn", "--quick", "--out", str(tmp_path / "file" / "out"))
    assert result.exit_code == 1
    assert "Traceback" not in result.output


WRONG_FILES = {
    "no words": {"ptb.train.txt": "a b c", "ptb.valid.txt": "", "ptb.test.txt": "a"},
    "no utf-8": dict.fromkeys(
        ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"), b"\xff\xfe"
    ),
    "no addresses": {"sotu.tsv.gz": ""},
    "one address": {"sotu.tsv.gz": "Adams 1797\tFellow citizens\n"},
    "no dictionary": {"cmudict.dict.gz": ""},
    "one word": {"cmudict.dict.gz": "# words\n\na AH0\n"},
    "no verses": {"web_rv1909.tsv.gz": ""},
    "one chapter": {"web_rv1909.tsv.gz": "Gen.1.1\tIn\tEn\nGen.1.2\tAnd\tY\n"},
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_files_that_are_cut_off_are_refused(name, tmp_path):
    for file, content in WRONG_FILES[name].items():
        content = content.encode() if isinstance(content, str) else content
        is_compressed = file.endswith(".gz")
        (tmp_path / file).write_bytes(
            gzip.compress(content) if is_compressed else content
        )
        task = {"cmudict.dict.gz": ("seq2seq",), "web_rv1909.tsv.gz": TRANSLATION}
        command = task.get(file, ("lstm",))
    result = run(*command, "--quick", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "copy" in result.output
