"""The networks, data and metrics of the paper's studies."""

import functools
import gzip

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("rapidfuzz")
pytest.importorskip("sacrebleu")

from flax import linen as nn

from benchmarks.paper import (
    corpora,
    images,
    language,
    lstm,
    ngrams,
    pairs,
    sequences,
    studies,
)
from gradprune_jax.demo import data
from gradprune_jax.demo.data import DataError


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


def test_too_little_data_is_refused():
    few = data.load().limit(8)
    with pytest.raises(DataError, match="8 images, fewer than a batch of 16"):
        images.ImageTask(images.PlainNetwork(((4, 2),)), few, 1, 16)


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


def test_an_lstm_layer_is_that_of_flax():
    cell = nn.OptimizedLSTMCell(4)
    rng = np.random.default_rng(0)
    inputs, first, second = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((5, 3, 6), (3, 4), (3, 4))
    )
    params = random_like(cell.init, jax.random.key(0), (first, second), inputs[0])

    def flaxs(params, carry, inputs):
        layer = nn.RNN(cell, time_major=True, return_carry=True)
        return layer.apply({"params": {"cell": params}}, inputs, initial_carry=carry)

    def results(layer):
        def summed(*arguments):
            found = layer(*arguments)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(found)), found

        grad = jax.grad(summed, argnums=(0, 1, 2), has_aux=True)
        return jax.jit(grad)(params["params"], (first, second), inputs)

    chex.assert_trees_all_close(results(lstm.layer), results(flaxs), rtol=1e-4)


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


def test_products_in_mixed_precision_are_summed_in_float32():
    rng = np.random.default_rng(0)
    operands = [
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 512), (512, 6))
    ]
    weights = jnp.asarray(rng.normal(size=(8, 6)), jnp.float32)

    def results(product, *operands):
        value, gradients = jax.value_and_grad(
            lambda *each: jnp.sum(product(*each) * weights), argnums=(0, 1)
        )(*operands)
        return product(*operands), value, *gradients

    rounded = [each.astype(jnp.bfloat16).astype(jnp.float32) for each in operands]
    found = results(language._mixed_product, *operands)
    exact = results(jnp.matmul, *rounded)
    assert all(each.dtype == jnp.float32 for each in found)
    # The products of the rounded numbers are exact in float32; in a gradient, the
    # other factor is rounded too, by at most 2^-8 of its size.
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-5, atol=1e-5)
    for mine, other in zip(found[2:], exact[2:], strict=True):
        assert 0 < np.abs(mine - other).max() < 2**-7 * np.abs(other).max()


def test_metrics_of_sequences():
    found = [("a", "b"), ("a",), ()]
    references = [("a", "b"), ("a", "b"), ("c",)]
    assert sequences.error_rates(found, references) == {
        "phone_errors": 40.0,
        "word_errors": pytest.approx(200 / 3),
    }
    words = ("en", "el", "principio", "crió")
    assert sequences.bleu([words], [words]) == pytest.approx(100.0)
