"""Large leaves, whose search starts from a sample: exact, and guessed well."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from gradprune_jax._top_k import sampling
from gradprune_jax._top_k.counts import Count
from gradprune_jax._top_k.keys import largest_ranking_key, ranking_keys
from gradprune_jax._top_k.ranking import Ranking
from gradprune_jax._top_k.search import Groups
from gradprune_jax._top_k.shards import whole
from gradprune_jax._top_k.units import Units
from tests import oracle
from tests.helpers import update_to

SCHEDULE = gp.one_shot_schedule(0.5, 0)
FAMILIES = ["normal", "tied", "mostly zero", "constant", "pruned before"]
LARGE = (512, 520)


def draw(family, shape, dtype="float32"):
    """Weights and masks."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=shape)
    mask = np.ones(shape, bool)
    if family == "tied":
        normal = np.round(normal * 20) / 20
    elif family == "mostly zero":
        normal = np.where(rng.random(shape) < 0.9, 0.0, normal)
    elif family == "constant":
        normal = np.ones(shape)
    elif family == "pruned before":
        mask = np.abs(normal) > 1.2816  # 80 %
        normal = np.where(mask, normal + 0.02 * rng.normal(size=shape), 0.0)
    return normal.astype(dtype), mask


@functools.cache
def compiled_update(rule, shapes, dtype):
    weights = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    masks = [jax.ShapeDtypeStruct(shape, bool) for shape in shapes]
    sparsity = jax.ShapeDtypeStruct((), jnp.float32)
    update = jax.jit(functools.partial(update_to, rule))
    return update.lower(sparsity, weights, masks).compile()


def assert_exact(rule, weights, masks, sparsity, **fields):
    shapes = tuple(leaf.shape for leaf in weights)
    update = compiled_update(rule, shapes, weights[0].dtype)
    new = update(jnp.float32(sparsity), weights, masks)
    expected = oracle.next_masks(weights, masks, sparsity, **fields)
    for mask, wanted in zip(new, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_leaf_is_exact(family, dtype):
    weights, mask = draw(family, LARGE, dtype)
    for sparsity in (0.3, 0.8, 0.805, 0.97, 1 - 1e-5):
        assert_exact(gp.Rule(SCHEDULE), [weights], [mask], sparsity)


@pytest.mark.parametrize(
    "shape", [(3, 3, 256, 128), (523, 509), (300_007,), (632, 632)]
)
def test_a_leaf_of_any_shape_is_exact(shape):
    """Convolution kernels, prime lengths, vectors, lengths with a large prime."""
    weights, mask = draw("normal", shape)
    for sparsity in (0.5, 0.93):
        assert_exact(gp.Rule(SCHEDULE, where=".*"), [weights], [mask], sparsity)


def test_large_slices_of_a_stacked_leaf_are_exact():
    weights, mask = draw("tied", (2, *LARGE))
    rule = gp.Rule(SCHEDULE, stack_axis=0)
    assert_exact(rule, [weights], [mask], 0.9, stack_axis=0)


@pytest.mark.parametrize("min_density", [0.0, 0.05])
def test_leaves_of_very_different_sizes_are_exact_together(min_density):
    large, mask = draw("tied", LARGE)
    small = (large[:7, :9] * 0.01).astype(np.float32)
    rule = gp.Rule(SCHEDULE, allocation="global", min_density=min_density)
    fields = dict(allocation="global", min_density=min_density)
    masks = [mask, np.ones(small.shape, bool)]
    for sparsity in (0.4, 0.9):
        assert_exact(rule, [large, small], masks, sparsity, **fields)


def units_of(weights, mask):
    return Units(
        (jnp.asarray(weights), jnp.asarray(mask)),
        first=None,
        make_keys=ranking_keys,
        dtype=jnp.float32,
        slice_axes=(),
        shard=whole(weights.shape),
    )


@pytest.mark.parametrize("family", ["normal", "pruned before"])
@pytest.mark.parametrize("sparsity", [0.805, 0.9, 0.98])
def test_the_guess_is_close(family, sparsity):
    """Within a few per cent of the ranks, also where the leaf was pruned before."""
    weights, mask = draw(family, LARGE)
    kept = round(weights.size * (1 - sparsity))
    top = np.array([largest_ranking_key(jnp.float32) + 3], np.uint32)
    guess = sampling.guess_thresholds(
        Ranking([units_of(weights, mask)]), Count.of([kept]), Groups(1, False), top
    )
    keys = np.where(mask, np.abs(weights), 0).astype(np.float32).view(np.uint32)
    at_low, at_high = (int((keys >= t[0]).sum()) for t in (guess.low, guess.high))
    for reached in (at_low, at_high):
        assert abs(reached - kept) < 0.04 * weights.size
    assert 0 < at_low - at_high < 0.06 * weights.size


def test_small_leaves_and_many_leaves_are_searched_without_a_sample():
    kept, top = Count.of([5] * 65), np.full(65, 2**31, np.uint32)
    small = units_of(np.ones((300, 300), np.float32), np.ones((300, 300), bool))
    guess = functools.partial(sampling.guess_thresholds, top=top)
    assert guess(Ranking([small]), kept, Groups(1, False)) is None
    large = dataclasses.replace(small, shard=whole(LARGE))
    assert guess(Ranking([large] * 65), kept, Groups(65, False)) is None


@pytest.mark.parametrize("shape", [LARGE, (523, 509), (300_007,), (3, 3, 256, 128)])
def test_a_sample_is_a_grid_of_a_few_thousand_units(shape):
    size = int(np.prod(shape))
    weights = np.arange(size, dtype=np.float32).reshape(shape)
    leaf = units_of(weights, np.ones(shape, bool))
    samples = sampling.Samples.of_ranking(Ranking([leaf]))
    keys = np.asarray(samples.keys[0])
    assert 1_000 < keys.size < 10_000
    assert np.unique(keys).size == keys.size
    assert set(keys.ravel()) <= set(weights.view(np.uint32).ravel() + 1)  # all live
    assert keys.size * samples.strides[0] == pytest.approx(size, rel=0.05)
    middle = float(np.median(keys.view(np.float32)))
    assert middle == pytest.approx(size / 2, rel=0.1)
