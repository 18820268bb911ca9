"""The exact top k: a stable sort agrees bit for bit, whatever the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprune_jax as gp
from tests import oracle
from tests.helpers import AS_FOR_USERS, enable_x64, update_to

FLOAT8 = [
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e4m3b11fnuz",
    "float8_e4m3",
    "float8_e3m4",
]
SCHEDULE = gp.one_shot_schedule(0.5, 0)

# A few trees of shapes, so that each is compiled once and met by many weights.
TREES = {
    "vector and matrix": [(7,), (5, 8)],
    "kernel": [(3, 3, 2, 5)],
    "one weight": [(1, 1), (1,)],
    "scalar and empty": [(), (0, 4), (6, 1)],
}


@functools.cache
def compiled_update(rule, shapes):
    del shapes  # a program for each
    update = functools.partial(update_to, rule)
    return jax.jit(update, compiler_options=AS_FOR_USERS)


def assert_exact(rule, weights, masks, sparsity, **fields):
    shapes = tuple(leaf.shape for leaf in weights)
    new = compiled_update(rule, shapes)(jnp.float32(sparsity), weights, masks)
    expected = oracle.next_masks(weights, masks, sparsity, **fields)
    for mask, wanted in zip(new, expected, strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(np.asarray(mask), wanted)


def draw(seed, shapes, dtypes):
    """Difficult weights, and masks of which some are full and some are not."""
    rng = np.random.default_rng(seed)
    weights = [
        oracle.difficult_weights(rng, shape, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    kept = rng.choice([1.0, 1.0, 0.6, 0.1])
    return weights, [rng.random(shape) < kept for shape in shapes]


seeds = st.integers(0, 2**32 - 1)
sparsities = st.one_of(
    st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 0.9, 1.0, 1 - 2**-24])
)


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [
        *(("float32", shapes) for shapes in TREES.values()),
        *((dtype, TREES["vector and matrix"]) for dtype in ("bfloat16", "float16")),
    ],
)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@given(seed=seeds, sparsity=sparsities)
def test_agrees_with_a_stable_sort(dtype, shapes, allocation, seed, sparsity):
    rule = gp.Rule(SCHEDULE, allocation=allocation)
    weights, masks = draw(seed, shapes, [dtype] * len(shapes))
    assert_exact(rule, weights, masks, sparsity, allocation=allocation)


@pytest.mark.parametrize("dtype", FLOAT8)
@settings(max_examples=15)
@given(seed=seeds, sparsity=sparsities)
def test_agrees_with_a_stable_sort_in_float8(dtype, seed, sparsity):
    weights, masks = draw(seed, [(16, 5)], [dtype])
    assert_exact(gp.Rule(SCHEDULE), weights, masks, sparsity)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_every_float8_value_is_ranked(dtype):
    """In the dtypes without a negative zero its bits are NaN, the highest rank."""
    weights = np.arange(256, dtype=np.uint8).view(dtype).reshape(16, 16)
    for sparsity in np.linspace(0, 1, 23):
        assert_exact(gp.Rule(SCHEDULE), [weights], [np.ones((16, 16), bool)], sparsity)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@given(seed=seeds, sparsity=sparsities)
def test_agrees_with_a_stable_sort_in_float64(allocation, seed, sparsity):
    rule = gp.Rule(SCHEDULE, allocation=allocation)
    with enable_x64():
        weights, masks = draw(seed, [(9, 4), (30,)], ["float64", "float64"])
        weights[0].flat[0] = 1.0 + 2.0**-40  # differs from 1 in float64 alone
        weights[1].flat[0] = 1.0
        assert_exact(rule, weights, masks, sparsity, allocation=allocation)


@given(seed=seeds, sparsity=sparsities)
def test_leaves_of_several_dtypes_are_ranked_together(seed, sparsity):
    rule = gp.Rule(SCHEDULE, allocation="global")
    dtypes = ["bfloat16", "float16", "float32", "float8_e5m2"]
    weights, masks = draw(seed, [(6, 3), (4, 4), (10,), (5, 2)], dtypes)
    assert_exact(rule, weights, masks, sparsity, allocation="global")


@pytest.mark.parametrize("stack_axis", [0, 1, -1])
@given(seed=seeds, sparsity=sparsities)
def test_each_slice_of_a_stacked_leaf_has_a_threshold_of_its_own(
    stack_axis, seed, sparsity
):
    rule = gp.Rule(SCHEDULE, stack_axis=stack_axis)
    weights, masks = draw(seed, [(3, 4, 5), (2, 6)], ["float32", "bfloat16"])
    assert_exact(rule, weights, masks, sparsity, stack_axis=stack_axis)


@pytest.mark.parametrize("min_density", [0.34, 1.0])
@given(seed=seeds, sparsity=sparsities)
def test_min_density_keeps_a_floor_of_every_leaf(min_density, seed, sparsity):
    rule = gp.Rule(SCHEDULE, allocation="global", min_density=min_density)
    weights, masks = draw(seed, [(8, 4), (3, 7), (1, 1)], ["float32"] * 3)
    weights[0] = weights[0] * np.float32(1e-6)  # a layer that would collapse
    fields = dict(allocation="global", min_density=min_density)
    assert_exact(rule, weights, masks, sparsity, **fields)


@pytest.mark.parametrize("kept", range(13))
def test_every_kept_count_of_tied_weights(kept):
    """Threshold comparison keeps all or none of a tie."""
    weights = np.array([1, -1, 0.5, 1, 0.5, 0, -0.0, 1, 0.5, 1, -1, 0], np.float32)
    sparsity = np.float32(1 - kept / 12)
    assert_exact(gp.Rule(SCHEDULE), [weights], [np.ones(12, bool)], sparsity)


def test_a_layer_with_a_handful_of_weights_keeps_one():
    """Others fail with index -1, or prune everything."""
    weights = np.array([[0.1, -0.3, 0.2]], np.float32)
    masks = compiled_update(gp.Rule(SCHEDULE), ((1, 3),))(
        jnp.float32(0.99), [weights], [np.ones((1, 3), bool)]
    )
    np.testing.assert_array_equal(masks[0], [[False, True, False]])


def test_heavy_tails_reach_the_target_exactly():
    """A histogram threshold gave 88.1 % of a target of 90 % on heavy tails."""
    rng = np.random.default_rng(0)
    weights = rng.standard_t(1.1, size=(100, 100)).astype(np.float32)
    mask = compiled_update(gp.Rule(SCHEDULE), ((100, 100),))(
        jnp.float32(0.9), [weights], [np.ones((100, 100), bool)]
    )[0]
    assert int(mask.sum()) == 1_000


def test_denormals_are_told_apart():
    """XLA flushes denormals in arithmetic; their bits are never calculated with."""
    weights = (np.arange(24) * np.float32(1e-45)).astype(np.float32).reshape(4, 6)
    assert np.unique(weights).size > 20
    for sparsity in (0.25, 0.5, 0.75):
        masks = [np.ones((4, 6), bool)]
        assert_exact(gp.Rule(SCHEDULE), [weights], masks, sparsity)


@pytest.mark.parametrize("stack_axis", [None, 0, -1])
@pytest.mark.parametrize("shape", [(248, 136), (9, 64, 60), (3, 3, 64, 64), (7, 4691)])
def test_large_leaves_are_counted_in_groups(shape, stack_axis):
    """Counts are packed in pairs from 2^15 weights on, where the sizes divide."""
    rng = np.random.default_rng(0)
    weights = [np.round(rng.normal(size=shape) * 50).astype(np.float32)]
    rule = gp.Rule(SCHEDULE, stack_axis=stack_axis)
    assert weights[0].size >= 2**15
    for sparsity in (0.1, 0.5, 0.93):
        masks = [rng.random(shape) < 0.9]
        assert_exact(rule, weights, masks, sparsity, stack_axis=stack_axis)


@given(seed=seeds)
def test_order_of_leaves_matters_for_global_ties_alone(seed):
    """Exchanging leaves exchanges masks, where no two weights tie."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(40).astype(np.float32) + 1
    one, other = values[:16].reshape(4, 4), values[16:].reshape(4, 6)
    update = compiled_update(gp.Rule(SCHEDULE, allocation="global"), ((4, 4), (4, 6)))
    swapped = compiled_update(gp.Rule(SCHEDULE, allocation="global"), ((4, 6), (4, 4)))
    ones = [np.ones((4, 4), bool), np.ones((4, 6), bool)]
    masks = update(jnp.float32(0.7), [one, other], ones)
    again = swapped(jnp.float32(0.7), [other, one], ones[::-1])
    np.testing.assert_array_equal(masks[0], again[1])
    np.testing.assert_array_equal(masks[1], again[0])
