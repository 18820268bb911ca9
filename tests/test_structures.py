"""N:M, blocks and channels: a NumPy oracle agrees bit for bit, whatever the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import gradprune_jax as gp
from tests import oracle
from tests.helpers import enable_x64, update_to
from tests.test_selection import seeds, sparsities

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)

# Even and ragged, one weight wide, convolutions, whole leaves, and several leaves.
UNITS = {
    "even blocks": (gp.Block((4, 4)), [(8, 12), (8, 0)]),
    "ragged blocks": (gp.Block((4, 3)), [(9, 7)]),
    "blocks of a kernel": (gp.Block((2, 4)), [(3, 2, 5, 8)]),
    "blocks in space": (gp.Block((3, 2, 2), "max"), [(3, 3, 4, 2)]),
    "a row": (gp.Block((5,)), [(6, 11), (7,)]),
    "one block": (gp.Block((3, 5)), [(3, 5)]),
    "long blocks": (gp.Block((1, 70)), [(3, 150)]),
    "one weight": (gp.Block((1, 1)), [(1, 1), (3, 1)]),
    "output channels": (gp.Channel(), [(3, 3, 2, 6), (4, 5)]),
    "input channels": (gp.Channel(-2, "max"), [(7, 3), (1, 4)]),
    "channels of a vector": (gp.Channel(), [(9,), (2, 0), (0, 3)]),
}
units = pytest.mark.parametrize(("structure", "shapes"), UNITS.values(), ids=UNITS)


@functools.cache
def compiled_update(rule):
    return jax.jit(functools.partial(update_to, rule))


def assert_exact(structure, weights, masks, sparsity, **fields):
    rule_fields = {name: value for name, value in fields.items() if name != "kept"}
    rule = gp.Rule(SCHEDULE, structure=structure, **rule_fields)
    new = compiled_update(rule)(jnp.float32(sparsity), weights, masks)
    expected = oracle.next_masks(
        weights, masks, sparsity, structure=structure, **fields
    )
    for mask, wanted in zip(new, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), wanted)


def draw(seed, shapes, dtype="float32"):
    rng = np.random.default_rng(seed)
    weights = [oracle.difficult_weights(rng, shape, dtype) for shape in shapes]
    kept = rng.choice([1.0, 1.0, 0.6])
    return weights, [rng.random(shape) < kept for shape in shapes]


@units
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@settings(max_examples=20)
@given(seed=seeds, sparsity=sparsities)
def test_units_agree_with_a_stable_sort(structure, shapes, allocation, seed, sparsity):
    weights, masks = draw(seed, shapes)
    assert_exact(structure, weights, masks, sparsity, allocation=allocation)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("pool", ["mean", "max"])
@settings(max_examples=10)
@given(seed=seeds, sparsity=sparsities)
def test_units_agree_with_a_stable_sort_in_other_dtypes(dtype, pool, seed, sparsity):
    weights, masks = draw(seed, [(6, 9)], dtype)
    assert_exact(gp.Block((4, 2), pool), weights, masks, sparsity)


@pytest.mark.parametrize(
    ("structure", "stack_axis", "allocation"),
    [
        (gp.Block((2, 3)), 0, "uniform"),
        (gp.Block((3,), "max"), -1, "global"),
        (gp.Channel(), 0, "global"),
        (gp.Channel(), -1, "uniform"),
        (gp.Channel(0), 1, "uniform"),
    ],
)
@settings(max_examples=8)
@given(seed=seeds, sparsity=sparsities)
def test_stacked_layers_are_pruned_as_each_alone(
    structure, stack_axis, allocation, seed, sparsity
):
    weights, masks = draw(seed, [(3, 5, 3), (4, 4, 6)])
    fields = dict(stack_axis=stack_axis, allocation=allocation)
    assert_exact(structure, weights, masks, sparsity, **fields)


@pytest.mark.parametrize("structure", [gp.Block((2, 2)), gp.Channel()])
@settings(max_examples=10)
@given(seed=seeds, sparsity=sparsities)
def test_a_floor_in_units_under_global_allocation(structure, seed, sparsity):
    weights, masks = draw(seed, [(6, 8), (4, 5)])
    weights[0] = weights[0] * np.float32(1e-6)
    fields = dict(allocation="global", min_density=0.3)
    assert_exact(structure, weights, masks, sparsity, **fields)


def test_means_in_float64_are_ranked_beyond_float32():
    weights = np.ones((4, 4))
    weights[2, 1] += 2.0**-26
    with enable_x64():
        _, masks = gp.prune({"kernel": weights}, 0.75, structure=gp.Block((2, 2)))
    np.testing.assert_array_equal(masks["kernel"][:, 0], [0, 0, 1, 1])


def test_means_of_the_largest_and_smallest_floats():
    """A sum of floats would be infinite, or flushed to zero."""
    huge, tiny = np.float32(3e38), np.float32(1e-45)
    weights = np.array([[huge, huge, 0, tiny], [huge, huge, 0, 0]])
    for sparsity, expected in ((0.5, [1, 1, 0, 0]), (0.25, [1, 1, 0, 1])):
        weights = np.tile(weights, (3, 1))[:2]
        _, masks = gp.prune({"kernel": weights}, sparsity, structure=gp.Block((2, 1)))
        np.testing.assert_array_equal(masks["kernel"][0], np.array(expected, bool))


def test_tied_channels_stay_in_order_whatever_the_order_of_summation():
    """Float means of channels differ between layouts in their last bits, and with ties
    they move whole channels."""
    rng = np.random.default_rng(0)
    column = rng.lognormal(sigma=6, size=1000).astype(np.float32)
    weights = np.stack([rng.permutation(column) for _ in range(16)], axis=1)
    float_means = np.abs(weights).mean(0, dtype=np.float32)
    assert len(np.unique(float_means)) > 1  # as floats they are not even equal
    _, masks = gp.prune({"kernel": weights}, 0.5, structure=gp.Channel())
    np.testing.assert_array_equal(masks["kernel"][0], np.arange(16) < 8)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_one_unit_stays_at_least(size):
    _, masks = gp.prune(
        {"kernel": np.ones((4, 4 * size))}, 0.99, structure=gp.Block((4, 4))
    )
    assert masks["kernel"].sum() == 16


def test_a_block_on_a_convolution_prunes_its_channels():
    """Block pruning of a 3x3x64x64 kernel with a 4x4 block on the first two axes never
    prunes; here blocks lie on the last axes, over input and output channels."""
    kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    _, masks = gp.prune({"kernel": kernel}, 0.9, structure=gp.Block((4, 4)))
    blocks = np.asarray(masks["kernel"]).reshape(3, 3, 16, 4, 16, 4)
    blocks = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(-1, 16)
    assert set(blocks.sum(1)) == {0, 16}
    assert blocks.any(1).sum() == 2304 - 2074  # 230.4 of 2,304 blocks stay


def test_patterns_of_kernels_that_have_outputs_first():
    """Equinox's weights are (out, in, ...); along -2 the groups would be wrong."""
    nn = pytest.importorskip("equinox").nn
    keys = jax.random.split(jax.random.key(0))
    layers = {
        "linear": nn.Linear(8, 6, key=keys[0]),
        "conv": nn.Conv2d(8, 6, 3, key=keys[1]),
    }
    params = {name: {"weight": layer.weight} for name, layer in layers.items()}
    _, masks = gp.prune(params, 0.5, structure=gp.NM(2, 4, axis=1))
    for mask in jax.tree.leaves(masks):
        groups = np.asarray(mask).reshape(6, 2, 4, -1)  # outputs, groups, inputs
        assert (groups.sum(2) == 2).all()
    pruned, _ = gp.prune(params, 0.5, structure=gp.Channel(axis=0))
    dead = gp.dead_channels(pruned, axis=0)
    assert {name: len(channels) for name, channels in dead.items()} == {
        "conv/weight": 3,
        "linear/weight": 3,
    }
