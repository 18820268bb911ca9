"""Many leaves: small ones searched together, each shape traced and compiled once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import gradprune_jax as gp
from benchmarks.speed.compilation import different_kernels
from gradprune_jax._mask_update.leaf import weight_keys
from gradprune_jax._prune import masks as one_shot_masks
from gradprune_jax._top_k import packing, ranking, summation, top_k, whole
from gradprune_jax._top_k.counts import Count
from gradprune_jax._top_k.units import Units
from tests import oracle
from tests.helpers import enable_x64, update_to

SCHEDULE = gp.one_shot_schedule(0.5, 0)
# Rows that are full, rows that are not, and a leaf of one weight.
SHAPES = [(64, 32), (31, 45), (3, 3, 8, 16), (1, 1), (100, 70), (1, 2047), (64, 32)]


def on_one_device(shape, dtype):
    """The type of an array that is known to be whole."""
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def draw(shapes, dtypes, seed=0):
    """Weights with many ties, zeros and a few NaN, and masks that prune a third."""
    rng = np.random.default_rng(seed)
    weights = [
        np.round(rng.normal(size=shape) * 8).astype(dtype) / np.asarray(8, dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    weights[1].flat[::97] = np.nan
    masks = [rng.random(shape) < 0.67 for shape in shapes]
    return weights, masks


def updated(rule, sparsity, weights, masks):
    """The masks of one compiled update on one device."""
    types = [on_one_device(leaf.shape, leaf.dtype) for leaf in weights]
    bools = [on_one_device(leaf.shape, bool) for leaf in weights]
    update = jax.jit(functools.partial(update_to, rule))
    program = update.lower(on_one_device((), np.float32), types, bools).compile()
    return program(np.float32(sparsity), weights, masks)


@pytest.fixture
def small_bins(monkeypatch):
    """Several bins for a few small leaves; the numbers of rows and slices in each."""
    made = []
    pack = packing.Bins.pack

    def spy(self, number):
        made.append((len(self.leaves), self.rows, self.slices.shape[1]))
        return pack(self, number)

    monkeypatch.setattr(packing, "SMALLEST_BIN", 2**13)
    monkeypatch.setattr(packing.Bins, "pack", spy)
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(stack_axis=0),
        dict(allocation="global", min_density=0.1, min_per_channel=1),
        dict(structure=gp.Block((1, 2))),
        dict(structure=gp.Channel()),
    ],
)
def test_packing_and_sampling_mix_no_ranks(small_bins, fields):
    """Users turn promotion of ranks off to find mistakes of their own."""
    shapes = [(64, 32), (32, 44), (512, 512), (3, 3, 8, 16)]
    types = [on_one_device(shape, jnp.float32) for shape in shapes]
    bools = [on_one_device(shape, bool) for shape in shapes]
    update = jax.jit(functools.partial(update_to, gp.Rule(SCHEDULE, **fields)))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        update.lower(on_one_device((), np.float32), types, bools)
    assert small_bins


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.99, 1.0])
def test_packed_leaves_are_exact(small_bins, dtype, sparsity):
    weights, masks = draw(SHAPES, [dtype] * len(SHAPES))
    new = updated(gp.Rule(SCHEDULE), sparsity, weights, masks)
    wanted = oracle.next_masks(weights, masks, sparsity)
    for mask, expected in zip(new, wanted, strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert small_bins == [(3, 7, 4)]  # three bins of seven rows, four leaves at most


def test_leaves_of_several_dtypes_and_large_ones_are_in_order(small_bins):
    shapes = [(64, 32), (200, 130), (31, 45), (64, 32), (150, 170), (9, 9)]
    dtypes = ["float32", "float32", "bfloat16", "float32", "bfloat16", "bfloat16"]
    weights, masks = draw(shapes, dtypes)
    new = updated(gp.Rule(SCHEDULE), 0.7, weights, masks)
    wanted = oracle.next_masks(weights, masks, 0.7)
    for mask, expected in zip(new, wanted, strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert len(small_bins) == 2  # one kind of each dtype; two leaves are in no bin


def test_stacked_leaves_are_packed_by_slices(small_bins):
    weights, masks = draw([(3, 20, 30), (4, 32, 32), (2, 17, 60)], ["float32"] * 3)
    rule = gp.Rule(SCHEDULE, stack_axis=0)
    new = updated(rule, 0.6, weights, masks)
    wanted = oracle.next_masks(weights, masks, 0.6, stack_axis=0)
    for mask, expected in zip(new, wanted, strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert small_bins


@pytest.mark.parametrize(
    "fields",
    [
        {"structure": gp.Block((4, 4))},
        {"structure": gp.Channel()},
        {"structure": gp.Channel(pool="max")},
        {"min_per_channel": 3},
    ],
    ids=str,
)
def test_units_and_floors_of_packed_leaves_are_exact(small_bins, fields):
    weights, masks = draw([(64, 32), (40, 48), (3, 3, 8, 16)], ["float32"] * 3)
    new = updated(gp.Rule(SCHEDULE, **fields), 0.8, weights, masks)
    wanted = oracle.next_masks(weights, masks, 0.8, **fields)
    for mask, expected in zip(new, wanted, strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert small_bins


def test_packed_leaves_of_64_bits_are_exact(small_bins):
    with enable_x64():
        weights, masks = draw([(64, 32), (31, 45)], ["float64"] * 2)
        new = updated(gp.Rule(SCHEDULE), 0.8, weights, masks)
        wanted = oracle.next_masks(weights, masks, 0.8)
        for mask, expected in zip(new, wanted, strict=True):
            np.testing.assert_array_equal(mask, expected)
    assert small_bins


def units_of(shape, sharding=None):
    weights = jax.device_put(np.ones(shape, np.float32), sharding)
    return Units(
        (weights, weights > 0), None, weight_keys, np.float32, (), whole(shape)
    )


def test_only_small_whole_leaves_are_packed():
    """With many devices, the sharding of an array on no mesh may show only later."""
    one, many = (jax.make_mesh((n,), ("x",), devices=jax.devices()[:n]) for n in (1, 8))
    on_one, on_many = (NamedSharding(m, PartitionSpec()) for m in (one, many))
    assert packing.bins_of([units_of((64, 64), on_one)] * 2)
    assert not packing.bins_of([units_of((64, 64), on_many)] * 2)
    assert not packing.bins_of([units_of((64, 64))] * 2)
    assert not packing.bins_of([units_of((64, 64), on_one)])  # alone
    assert not packing.bins_of([units_of((1024, 1024), on_one)] * 2)  # a long copy


def test_a_shape_is_traced_once():
    """Keys are made in a pass over keys, in one over ties, and for the mask."""
    traces = []

    def keys(weights, mask, dtype):
        traces.append(weights.shape)
        return weight_keys(weights, mask, dtype)

    def select(*arrays):
        units = [
            Units((x, x > 0), None, keys, np.float32, (), whole(x.shape))
            for x in arrays
        ]
        return top_k(units, Count.of([5] * len(units)))

    jax.jit(select).lower(*[jnp.ones((24, 36))] * 12, *[jnp.ones((30, 20))] * 8)
    assert sorted(set(traces)) == [(24, 36), (30, 20)]
    assert len(traces) == 2 * 3


def kernels(leaves):
    """How many different kernels a step has, with so many leaves of one shape."""
    leaf = jax.ShapeDtypeStruct((40, 72), np.float32)
    params = {f"layer_{i}": {"kernel": leaf} for i in range(leaves)}
    schedule = gp.polynomial_schedule(0.9, 0, 10, 1)
    tx = optax.chain(optax.adam(1e-3), gp.gradual_prune(schedule))
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    return len(different_kernels(program))


def test_leaves_of_one_shape_share_their_kernels():
    """Most of the time to compile is that of kernels; equal ones are compiled once."""
    assert kernels(12) <= kernels(6) + 2


@pytest.mark.parametrize("stack_axis", [None, 0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_of_many_leaves_are_added_up_exactly(dtype, stack_axis):
    """Of any shapes: with few runs, with many, of prime lengths, of a single unit."""
    small = [(2, 8, 8 + i) for i in range(ranking.MANY_LEAVES)]
    long = [(3, 523, 7), (2, 131, 137), (1, 1, 1), (2, 512, 512), (5, 32, 32)]
    weights, masks = draw(small + long, [dtype] * (len(small) + len(long)))
    rule = gp.Rule(SCHEDULE, allocation="global", stack_axis=stack_axis)
    for sparsity in (0.4, 0.9):
        new = updated(rule, sparsity, weights, masks)
        fields = dict(allocation="global", stack_axis=stack_axis)
        wanted = oracle.next_masks(weights, masks, sparsity, **fields)
        for mask, expected in zip(new, wanted, strict=True):
            np.testing.assert_array_equal(mask, expected)


def test_counts_of_many_leaves_are_added_up_by_one_kernel():
    """Else each would have a kernel of its own for it, in every loop."""
    leaf = on_one_device((16, 16), np.uint32)
    sums = jax.jit(lambda *leaves: summation.add_runs(leaves)).lower(*[leaf] * 20)
    assert sums.compile().as_text().count(" fusion(") == 1


def test_packing_takes_less_than_half_a_byte_a_weight():
    types = [on_one_device((256, 256), np.float32)] * 64
    bools = [on_one_device((256, 256), bool)] * 64
    update = jax.jit(functools.partial(update_to, gp.Rule(SCHEDULE)))
    program = update.lower(on_one_device((), np.float32), types, bools).compile()
    weights = 64 * 256 * 256
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * weights


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"allocation": "global", "min_density": 0.2},
        {"allocation": "global", "structure": gp.Channel()},
        {"allocation": "erk", "min_per_channel": 1},
        {"structure": gp.NM(2, 4), "sparsity": 0.5},
    ],
    ids=str,
)
def test_many_leaves_are_pruned_as_by_one_program(monkeypatch, fields):
    rng = np.random.default_rng(0)
    shapes = [(8, 12), (16, 4), (20, 8)]
    params = [
        {"kernel": np.round(rng.normal(size=shapes[i % 3]) * 4).astype(np.float32)}
        for i in range(9)
    ]
    fields = {"sparsity": 0.7} | fields
    compiled, masks = gp.prune(params, **fields)
    monkeypatch.setattr(one_shot_masks, "MOST_IN_ONE_PROGRAM", 8)
    apart, same_masks = gp.prune(params, **fields)
    jax.tree.map(np.testing.assert_array_equal, masks, same_masks)
    jax.tree.map(np.testing.assert_array_equal, compiled, apart)
