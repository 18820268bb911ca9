"""Erdos-Renyi-kernel densities: the total asked for, along the schedule's curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprune_jax as gp
from gradprune_jax._mask_update.erk import erk_densities
from gradprune_jax._mask_update.slices import Slice
from gradprune_jax._schedules import progress
from tests import oracle
from tests.helpers import enable_x64

SCHEDULE = gp.one_shot_schedule(0.5, 0)

SHAPES = {
    "conv1": {"kernel": (3, 3, 1, 8)},
    "conv2": {"kernel": (3, 3, 8, 16)},
    "dense": {"kernel": (64, 40)},
    "head": {"kernel": (40, 10)},
}


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def by_fixed_point(shapes, density):
    """The algorithm as it is usually written: the worst layer becomes dense, again."""
    sizes = np.array([np.prod(shape) for shape in shapes])
    ratios = np.array([np.sum(shape) / np.prod(shape) for shape in shapes])
    dense = np.zeros(len(shapes), bool)
    while True:
        budget = density * sizes.sum() - sizes[dense].sum()
        scale = budget / (sizes * ratios)[~dense].sum() if not dense.all() else 0
        densities = np.where(dense, 1.0, scale * ratios)
        if densities.max() <= 1:
            return densities
        dense |= ~dense & (densities == densities.max())


@given(
    shapes=st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6
    ),
    density=st.floats(0.001, 0.999),
)
def test_densities_are_those_of_the_fixed_point(shapes, density):
    slices = [Slice(int(np.prod(shape)), tuple(shape)) for shape in shapes]
    densities = erk_densities(slices, density)
    np.testing.assert_allclose(densities, by_fixed_point(shapes, density), rtol=1e-9)
    sizes = [each.units for each in slices]
    np.testing.assert_allclose(np.dot(densities, sizes), density * sum(sizes))


@pytest.mark.parametrize("final", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "fields",
    [{}, dict(structure=gp.Block((1, 2), "max")), dict(structure=gp.Channel())],
    ids=["weights", "blocks", "channels"],
)
def test_the_total_is_within_one_unit_of_each_leaf(final, fields):
    _, masks = gp.prune(make_params(), final, allocation="erk", **fields)
    plan = gp.plan(
        gp.one_shot_schedule(final, 0), make_params(), allocation="erk", **fields
    )
    structure = fields.get("structure", gp.Unstructured())
    kept, units = 0, 0
    for leaf, mask in zip(plan.pruned, jax.tree.leaves(masks), strict=True):
        scores = oracle.unit_scores(np.asarray(mask, float), structure)
        kept += np.count_nonzero(scores)
        units += scores.size
        assert (leaf.units, leaf.kept_units) == (scores.size, np.count_nonzero(scores))
    assert abs(kept - (units - round(final * units))) <= len(plan.pruned)


def test_leaves_go_along_the_curve_each_to_its_own_density():
    schedule = gp.polynomial_schedule(0.8, 0, 8, every=2, initial_sparsity=0.25)
    params = make_params()
    tx = gp.gradual_prune(schedule, allocation="erk")
    state, step = tx.init(params), jax.jit(tx.update)
    final = [leaf.kept for leaf in gp.plan(schedule, params, allocation="erk").pruned]
    masks = [np.ones(leaf.shape, bool) for leaf in jax.tree.leaves(params)]
    for count in range(10):
        if schedule.is_update_step(count):
            done = float(progress(schedule, count))
            kept = []
            for mask, end in zip(masks, final, strict=True):
                start = oracle.kept_count(mask.size, 0.25)
                kept.append(start - round(done * (start - end)))
            masks = oracle.next_masks(jax.tree.leaves(params), masks, 0.0, kept=kept)
        _, state = step(params, state, params)
        for mask, mine in zip(masks, jax.tree.leaves(state.masks), strict=True):
            np.testing.assert_array_equal(mine, mask)
    assert [int(mask.sum()) for mask in masks] == final
    assert final[0] == 54  # the smallest layer would exceed what all begin with


def test_empty_layers_have_no_part_in_the_densities():
    shapes = [(34, 56), (18, 49), (40, 2), (0, 3)]
    layers = [Slice(int(np.prod(shape)), shape) for shape in shapes]
    with_empty = erk_densities(layers, 0.3, 0.3)
    np.testing.assert_allclose(with_empty[:3], 0.3)
    np.testing.assert_array_equal(erk_densities(layers[3:], 0.3), [0.0])
    params = {"kernel": jnp.zeros((0, 3, 4))}
    plan = gp.plan(SCHEDULE, params, allocation="erk", stack_axis=0)
    assert plan.kept == (0,)


def test_slices_of_a_stacked_leaf_are_layers_of_their_own():
    apart = {f"layer{i}": {"kernel": np.ones((20, 10))} for i in range(3)}
    apart["wide"] = {"kernel": np.ones((60, 50))}
    stacked = {"layers": {"kernel": np.ones((3, 20, 10))}, "wide": apart["wide"]}
    _, one = gp.prune(apart, 0.7, allocation="erk")
    rules = [gp.Rule(gp.one_shot_schedule(0.7, 0), allocation="erk", stack_axis=0)]
    shapes = {"layers": stacked["layers"]}
    plan = gp.plan(rules, shapes | {"one": {"kernel": np.ones((1, 60, 50))}})
    expected = [int(mask.sum()) for mask in jax.tree.leaves(one)]
    assert [leaf.kept for leaf in plan.leaves] == [sum(expected[:3]), expected[3]]


@settings(max_examples=20)
@given(final=st.floats(0.0625, 0.96875, width=32))
def test_a_traced_target_keeps_what_a_number_does_or_one_more_or_less(final):
    expected = gp.plan(gp.one_shot_schedule(final, 0), make_params(), allocation="erk")
    kept = compiled_kept()(jnp.float32(final))
    for leaf, mine in zip(expected.pruned, kept, strict=True):
        assert abs(leaf.kept - int(mine)) <= 1


@functools.cache
def compiled_kept():
    def kept(final):
        _, masks = gp.prune(make_params(), final, allocation="erk")
        return [mask.sum() for mask in jax.tree.leaves(masks)]

    return jax.jit(kept)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_traced_targets_of_any_dtype_under_strict_promotion_and_x64(dtype):
    with enable_x64(), jax.numpy_dtype_promotion("strict"):
        params = {"a": {"kernel": jnp.ones((8, 4))}, "b": {"kernel": jnp.ones((9, 3))}}

        def kept(final):
            schedule = gp.polynomial_schedule(final, 0, 4, every=1)
            tx = gp.gradual_prune(schedule, allocation="erk")
            state = tx.init(params)._replace(count=jnp.int32(4))
            _, state = tx.update(params, state, params)
            return [mask.sum() for mask in jax.tree.leaves(state.masks)]

        expected = gp.plan(gp.one_shot_schedule(0.5, 0), params, allocation="erk")
        for leaf, mine in zip(expected.pruned, jax.jit(kept)(dtype(0.5)), strict=True):
            assert abs(leaf.kept - int(mine)) <= 1
