"""The paper's studies run at a tiny scale, go on where they stopped, and compare."""

import dataclasses
import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp

pytest.importorskip("click")
pytest.importorskip("orbax.checkpoint")
pytest.importorskip("rapidfuzz")
pytest.importorskip("sacrebleu")
pytest.importorskip("matplotlib")

from click.testing import CliRunner
from flax import linen as nn
from rich.console import Console

from benchmarks import stored
from benchmarks.paper import (
    corpora,
    images,
    language,
    ngrams,
    pairs,
    runs,
    sequences,
    storage,
    studies,
    tables,
    tradeoff,
    training,
)
from benchmarks.paper.__main__ import main
from benchmarks.paper.task import (
    Baseline,
    Configuration,
    Metric,
    Remark,
    Study,
    window,
)
from gradprune_jax.demo import data
from gradprune_jax.demo.data import DataError

TRANSLATION = ("seq2seq", "--task", "translation")


def run(*arguments):
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize("name", ["cnn", "mobilenet", "lstm", "seq2seq"])
def test_a_study_runs_and_is_not_run_again(name, tmp_path):
    before = (stored.FOLDER / "README.md").read_text()
    first = run(name, "--quick", "--out", str(tmp_path))
    assert first.exit_code == 0, first.output
    folder = tmp_path / "quick"
    assert {file.name for file in folder.iterdir()} == {
        f"{name}.json",
        f"{name}.md",
        f"{name}.png",
        "checkpoints",
    }
    records = json.loads((folder / f"{name}.json").read_text())
    study = studies.STUDIES[name]("quick", None)
    for record, configuration in zip(records, study.configurations, strict=True):
        assert record["configuration"] == configuration.name
        assert record["bytes"]["bitmask"] <= record["bytes"]["dense"]
        assert (record["nonzero"] < record["parameters"]) == bool(configuration.rules)
    text = (folder / f"{name}.md").read_text()
    assert f"| {study.configurations[-1].name} |" in text
    assert f"`python -m benchmarks.paper {name} --quick`" in text
    again = run(name, "--quick", "--out", str(tmp_path))
    assert again.exit_code == 0
    assert json.loads((folder / f"{name}.json").read_text()) == records
    assert (stored.FOLDER / "README.md").read_text() == before


@dataclasses.dataclass(frozen=True)
class Line:
    """A task that takes no time: weights that follow their targets."""

    steps: int = 25
    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def init(self, key):
        return {"kernel": jax.random.normal(key, (6, 5))}, jnp.zeros(())

    def batch(self, seed, step):
        return np.random.default_rng((seed, step)).normal(size=(6, 5)).astype("float32")

    def loss(self, params, carried, batch, key):
        noise = jax.random.normal(key, (6, 5))
        error = jnp.mean((params["kernel"] - batch - noise) ** 2)
        return error, carried + error

    def evaluate(self, params, carried):
        return {"error": float(carried)}


LINE = Study(
    name="line",
    title="Line",
    metric=Metric("error", "error", "", lower_is_better=True),
    reference="dense",
    configurations=(
        Configuration("dense", Line()),
        Configuration("80 %", Line(), (gp.Rule(window(0.8, 25)),)),
    ),
    seeds=2,
    source="noise",
    checksum=0,
)


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    configuration = LINE.configurations[1]

    def interrupt(step, loss):
        if step == 20:
            raise KeyboardInterrupt

    def train(folder, report):
        steps = []
        measured = training.train(
            configuration,
            3,
            tmp_path / folder,
            lambda step, loss: (steps.append(step), report(step, loss)),
            save_every=0.0,
        )
        return steps, measured

    whole, expected = train("whole", lambda step, loss: None)
    with pytest.raises(KeyboardInterrupt):
        train("cut", interrupt)
    rest, measured = train("cut", lambda step, loss: None)
    assert (whole, rest) == ([10, 20, 25], [20, 25])
    assert measured.pop("seconds") > 0
    assert expected.pop("seconds") > 0
    assert measured == expected
    assert measured["nonzero"] == 6


def test_only_trainings_with_other_settings_are_run_again(tmp_path, monkeypatch):
    trained, folders = [], []

    def train(configuration, seed, folder, report):
        trained.append((configuration.name, seed))
        report(25, 1.0)
        folders.append(folder)
        return {"metrics": {"error": 1.0}}

    monkeypatch.setattr(training, "train", train)
    console = Console(quiet=True)
    records = runs.run(LINE, tmp_path, console)
    assert trained == [("dense", 0), ("dense", 1), ("80 %", 0), ("80 %", 1)]
    assert [each["seed"] for each in records] == [0, 1, 0, 1]
    assert all(each["commit"] for each in records)
    assert runs.run(LINE, tmp_path, console) == records
    slower = Configuration(
        "80 %", Line(learning_rate=0.01), LINE.configurations[1].rules
    )
    changed = dataclasses.replace(LINE, configurations=(LINE.configurations[0], slower))
    others = dataclasses.replace(LINE, checksum=1)
    for study, expected in [(changed, 2), (others, 4), (LINE, 0)]:
        trained.clear()
        runs.run(study, tmp_path, console)
        assert len(trained) == expected
    assert len(set(folders)) == len(folders)  # no checkpoint of other settings


def test_a_damaged_file_of_records_is_left_as_it_is(tmp_path):
    file = tmp_path / "line.json"
    file.write_text("[{")
    with pytest.raises(DataError, match=r"line\.json: is damaged .* move it away"):
        runs.run(LINE, tmp_path, Console(quiet=True))
    assert file.read_text() == "[{"


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
        reference="as in the paper",
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


@pytest.mark.parametrize(
    ("name", "seeds", "dense", "sparsities"),
    [
        ("cnn", 3, 1, (0.5, 0.75, 0.875, 0.95)),
        ("mobilenet", 3, 4, (0.5, 0.75, 0.9, 0.95)),
        ("lstm", 2, 3, (0.8, 0.85, 0.9, 0.95, 0.975)),
        ("seq2seq", 2, 4, (0.8, 0.85, 0.9)),
    ],
)
def test_a_study_compares_like_with_like(name, seeds, dense, sparsities):
    study = studies.STUDIES[name]("laptop", None)
    assert study.seeds == seeds
    assert len({each.task.steps for each in study.configurations}) == 1
    rules = [each.rules for each in study.configurations]
    assert rules[:dense] == [()] * dense
    targets = tuple(each[-1].schedule.final_sparsity for each in rules[dense:])
    assert targets == sparsities


def test_the_papers_sizes():
    key = jax.random.key(0)
    made = {each.name: each for each in studies.lstm("paper", None).configurations}
    params, _ = jax.eval_shape(made["large, 90 %"].task.init, key)
    assert runs._parameters(made["large"]) == 66_022_000
    assert runs._parameters(made["medium"]) == 19_775_200
    assert runs._parameters(made["small"]) == 4_651_600
    plan = gp.plan(list(made["large, 90 %"].rules), params)
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


def test_a_depthwise_convolution_is_that_of_flax():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 7, 6, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 1, 5)).astype(np.float32)
    variables = {"params": {"kernel": kernel}}
    for stride in (1, 2):
        native = nn.Conv(
            5, (3, 3), stride, padding=1, feature_group_count=5, use_bias=False
        )
        np.testing.assert_allclose(
            images.DepthwiseConv(stride).apply(variables, pixels),
            native.apply(variables, pixels),
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_trigram_knows_what_it_has_counted():
    text = np.tile([0, 1, 2, 0, 2, 1], 50)
    assert ngrams.perplexity(text, text, text, 3) == pytest.approx(1.0, abs=0.45)
    rng = np.random.default_rng(0)
    noise = rng.integers(4, size=20_000)
    assert ngrams.perplexity(noise, noise, noise[:500], 4) == pytest.approx(4, rel=0.1)


def test_treebank_and_verses_are_read_from_their_folders(tmp_path):
    for part, text in zip(
        ("train", "valid", "test"), ("a b\nb c", "b c", "d d"), strict=True
    ):
        (tmp_path / f"ptb.{part}.txt").write_text(text)
    corpus = corpora.load(tmp_path, 4)
    words = [corpus.vocabulary[i] for i in corpus.train]
    assert words == ["a", "b", "<eos>", "b", "<unk>", "<eos>"]
    assert [corpus.vocabulary[i] for i in corpus.test] == ["<unk>", "<unk>", "<eos>"]
    verses = "".join(
        f"Gen.{chapter}.{verse}\tIn the beginning, {verse}\tEn el principio {chapter}\n"
        for chapter in range(1, 41)
        for verse in (1, 2)
    )
    with gzip.open(tmp_path / "web_rv1909.tsv.gz", "wt") as file:
        file.write(verses)
    study = studies.translation("quick", tmp_path)
    verses = study.configurations[0].task.pairs
    assert len(verses.train.references) == 72
    assert verses.test.references[0] == ("en", "el", "principio", "2")
    (tmp_path / "web_rv1909.tsv.gz").write_bytes(b"no gzip")
    pairs.verses.cache_clear()
    with pytest.raises(DataError, match="is damaged"):
        pairs.verses(tmp_path, 10)
    for read in (corpora.load, pairs.verses):
        with pytest.raises(DataError, match="put"):
            read(tmp_path / "nothing", 10)
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


def test_too_little_data_and_divergence_are_refused(tmp_path):
    few = data.load().limit(8)
    with pytest.raises(DataError, match="8 images, fewer than a batch of 16"):
        images.ImageTask(images.PlainNetwork(((4, 2),)), few, 1, 16)
    diverging = Configuration("dense", Line(steps=2, learning_rate=float("nan")))
    with pytest.raises(FloatingPointError, match="dense: the training diverged"):
        training.train(diverging, 0, tmp_path, lambda step, loss: None)


def test_every_pair_is_trained_on_once_in_an_epoch():
    task = studies.seq2seq("laptop", None).configurations[0].task
    assert len(task.pairs.source_symbols) == 4 + 27
    assert len(task.pairs.target_symbols) == 4 + 39
    batches = sequences._batches(task, 0, 0)
    rows = np.concatenate([rows for _, rows in batches])
    assert len(set(rows)) == len(rows) > 112_432 - 4 * task.batch_size
    for width, chosen in batches[:50]:
        assert task.lengths[chosen].max() <= width
    for part in (task.pairs.valid, task.pairs.test):
        assert len(part.references) in (6_246, 6_247)


def random_like(function, *arguments):
    """Normal numbers in place of what a function returns."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype),
        jax.eval_shape(function, *arguments),
    )


def test_a_search_finds_the_symbols_that_the_network_expects():
    network = sequences.Translator(9, 8, units=12)
    rng = np.random.default_rng(0)
    sources = np.pad(rng.integers(4, 9, (3, 4)), ((0, 0), (0, 2))).astype(np.int32)
    sources[1, 2:] = pairs.PAD
    inputs = np.full((3, 6), pairs.BEGIN, np.int32)
    params = random_like(network.init, jax.random.key(0), sources, inputs)["params"]
    found = np.asarray(sequences._greedy(network, 6, params, sources))
    inputs[:, 1:] = found[:, :-1]
    apply = jax.jit(network.apply)
    logits = apply({"params": params}, sources, inputs)
    np.testing.assert_array_equal(logits.argmax(-1), found)
    assert len(np.unique(found)) > 2
    unpadded = apply({"params": params}, sources[:, :4], inputs)
    np.testing.assert_allclose(unpadded, logits, rtol=1e-4, atol=1e-5)


def test_perplexity_is_of_every_word_but_the_first():
    network = language.LanguageModel(7, units=4, layers=1)
    text = np.random.default_rng(0).integers(7, size=100).astype(np.int32)
    corpus = corpora.Corpus("noise", tuple("abcdefg"), text, text, text)
    task = language.LanguageTask(network, corpus, 1, streams=2, unroll=3)
    params, _ = random_like(task.init, jax.random.key(0))
    # 99 words to predict: twenty streams of six, read at once and not in two windows.
    words, targets = (
        np.pad(part, (0, 21)).reshape(20, 6).T for part in (text[:-1], text[1:])
    )
    apply = jax.jit(functools.partial(network.apply, training=False))
    _, logits = apply({"params": params}, network.start(20), words)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    expected = np.exp(losses.T.reshape(-1)[:99].mean())
    assert task._perplexity(params, text) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped_before_adam_sees_them():
    gradients = {"kernel": np.full((6, 5), 3.0, np.float32)}
    params = jax.tree.map(np.zeros_like, gradients)
    tx = LINE.configurations[1].optimizer()
    update = jax.jit(tx.update)

    def last(first):
        _, state = update(first, tx.init(params), params)
        return update(gradients, state, params)[0]

    larger = jax.tree.map(lambda leaf: 1_000 * leaf, gradients)
    jax.tree.map(np.testing.assert_allclose, last(larger), last(gradients))


def test_metrics_of_sequences():
    found = [("a", "b"), ("a",), ()]
    references = [("a", "b"), ("a", "b"), ("c",)]
    assert sequences.error_rates(found, references) == {
        "phone_errors": 40.0,
        "word_errors": pytest.approx(200 / 3),
    }
    words = ("en", "el", "principio", "crió")
    assert sequences.bleu([words], [words]) == pytest.approx(100.0)


def test_bytes_of_a_sparse_matrix_are_those_of_its_arrays():
    leaf = np.zeros((10, 64), np.float32)
    leaf[:, :3] = 1
    assert storage.sizes([leaf]) == {
        "dense": 4 * 640,
        "bitmask": 4 * 30 + 640 // 8,
        "csr": 4 * 30 + 4 * 30 + 4 * 11,
    }
    dense = np.ones((10, 64), np.float32)
    assert set(storage.sizes([dense]).values()) == {dense.nbytes}
