"""Coupled channels: the units of a group are dropped in all of its members."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp
from tests.coupled import dense, dense_groups, dense_params
from tests.networks import NETWORKS, assert_same, network


def scores_of(groups, params, pool=np.mean):
    """The scores of every group's units, by plain NumPy: the oracle."""
    found = []
    for group in groups.free:
        scores = []
        for unit in range(group.size):
            weights = []
            for (name, axis), indices in zip(group.members, group.indices, strict=True):
                if params[name].ndim < 2:
                    continue
                own = [seq[unit] for seq in indices if seq[unit] >= 0]
                taken = np.take(np.abs(np.asarray(params[name], np.float64)), own, axis)
                weights.append(taken.ravel())
            scores.append(pool(np.concatenate(weights)))
        found.append(np.array(scores))
    return found


def kept_units(groups, masks):
    """Which units of every group live, read from all of its members."""
    found = []
    for group in groups.free:
        live = []
        for (name, axis), indices in zip(group.members, group.indices, strict=True):
            others = tuple(n for n in range(masks[name].ndim) if n != axis)
            along = np.asarray(masks[name]).any(others)
            live.append(
                [all(along[seq[u]] for seq in indices) for u in range(group.size)]
            )
        assert all(own == live[0] for own in live), "members disagree"
        found.append(np.array(live[0]))
    return found


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_units_of_lowest_pooled_score_go_in_all_members(pool):
    params, groups = dense_params(), dense_groups()
    structure = gp.CoupledChannels(groups, pool=pool)
    _, masks = gp.prune(params, 0.5, structure=structure)
    oracle = scores_of(groups, params, getattr(np, pool))
    for scores, live in zip(oracle, kept_units(groups, masks), strict=True):
        kept = len(scores) - round(0.5 * len(scores))
        np.testing.assert_array_equal(
            np.flatnonzero(live), np.sort(np.argsort(-scores)[:kept])
        )


def test_all_that_was_pruned_is_cut():
    params, groups = dense_params(), dense_groups()
    pruned, masks = gp.prune(params, 0.5, structure=gp.CoupledChannels(groups))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
    shrunk = gp.shrink(dense, pruned, x)
    assert [shrunk.params[name].shape for name in ("w1", "b1", "w2", "b2", "w3")] == [
        (4, 3),
        (3,),
        (3, 5),
        (5,),
        (5, 3),
    ]
    np.testing.assert_allclose(shrunk.fn(shrunk.params, x), dense(pruned, x), rtol=1e-5)
    for name, leaf in pruned.items():
        assert not np.asarray(leaf)[~np.asarray(masks[name])].any()


def test_global_allocation_ranks_the_units_of_all_groups():
    params, groups = dense_params(), dense_groups()
    params["w2"] = params["w2"] * 3
    _, masks = gp.prune(
        params, 0.5, structure=gp.CoupledChannels(groups), allocation="global"
    )
    scores = np.concatenate(scores_of(groups, params))
    live = np.concatenate(kept_units(groups, masks))
    assert live.sum() == 8
    assert scores[live].min() > scores[~live].max()


def test_min_density_holds_for_every_group():
    params, groups = dense_params(), dense_groups()
    for name in ("w1", "w2"):  # without the floor the first group would lose all units
        params[name] = params[name] * 1e-3
    _, masks = gp.prune(
        params,
        0.5,
        structure=gp.CoupledChannels(groups),
        allocation="global",
        min_density=0.5,
    )
    first, second = kept_units(groups, masks)
    assert (first.sum(), second.sum()) == (3, 5)


@pytest.mark.parametrize(
    ("sparsity", "allocation", "kept"),
    [
        (0.0, "uniform", (32, 20)),
        (0.3, "uniform", (24, 16)),  # 22 and 14, to the nearest multiple
        (0.9, "uniform", (8, 8)),  # at least one multiple
        (1.0, "uniform", (0, 0)),
        (0.3, "global", None),
    ],
)
def test_sizes_are_multiples(sparsity, allocation, kept):
    widths = (4, 32, 20, 3)
    params, groups = dense_params(widths=widths), dense_groups(widths)
    structure = gp.CoupledChannels(groups, round_to=8)
    _, masks = gp.prune(params, sparsity, structure=structure, allocation=allocation)
    sizes = tuple(int(live.sum()) for live in kept_units(groups, masks))
    if kept is None:
        assert all(size % 8 == 0 and size > 0 for size in sizes)
        assert abs(sum(sizes) - round(0.7 * 52)) <= 8
        scores = scores_of(groups, params)
        for own, live in zip(scores, kept_units(groups, masks), strict=True):
            assert own[live].min() > own[~live].max(initial=0)
    else:
        assert sizes == kept


def test_a_small_group_stays_whole():
    params, groups = dense_params(), dense_groups()
    structure = gp.CoupledChannels(groups, round_to=8)
    _, masks = gp.prune(params, 0.5, structure=structure)
    assert [int(live.sum()) for live in kept_units(groups, masks)] == [6, 8]


def test_gradual_pruning_is_exact_and_monotone():
    params, groups = dense_params(), dense_groups()
    schedule = gp.polynomial_schedule(0.5, begin_step=0, end_step=6, every=2)
    tx = optax.chain(
        optax.adam(0.05),
        gp.gradual_prune(schedule, structure=gp.CoupledChannels(groups)),
    )
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        grads = jax.grad(lambda p: jnp.sum((dense(p, x) - 1.0) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, before = tx.init(params), None
    for number in range(8):
        params, state = step(params, state)
        live = kept_units(groups, gp.get_masks(state))
        sparsity = float(schedule.sparsity(2 * (min(number, 6) // 2)))
        for own in live:
            assert own.sum() == len(own) - round(sparsity * len(own))
        if before is not None:
            assert all(
                (new <= old).all() for new, old in zip(live, before, strict=True)
            )
        before = live
        gp.check_pruned(params, state)
    assert len(traces) == 1
    shrunk = gp.shrink(dense, params, x)
    assert shrunk.params["w2"].shape == (3, 5)
    np.testing.assert_allclose(
        shrunk.fn(shrunk.params, x), dense(params, x), rtol=1e-5, atol=1e-6
    )


def test_a_unit_with_nan_is_kept_and_infinity_before_numbers():
    params, groups = dense_params(), dense_groups()
    params["w1"] = params["w1"].at[0, 2].set(jnp.nan).at[0, 4].set(jnp.inf)
    _, masks = gp.prune(params, 0.67, structure=gp.CoupledChannels(groups))
    assert np.flatnonzero(kept_units(groups, masks)[0]).tolist() == [2, 4]


def test_ties_go_to_the_lower_index():
    params = jax.tree.map(jnp.ones_like, dense_params())
    groups = dense_groups()
    _, masks = gp.prune(params, 0.5, structure=gp.CoupledChannels(groups))
    assert [np.flatnonzero(live).tolist() for live in kept_units(groups, masks)] == [
        [0, 1, 2],
        [0, 1, 2, 3, 4],
    ]


def test_live_zero_units_come_before_pruned_ones():
    """A unit whose weights are all zero, but not pruned, is kept before pruned ones."""
    params, groups = dense_params(), dense_groups()
    structure = gp.CoupledChannels(groups)
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0), structure=structure)
    state = tx.init(params)
    _, state = tx.update(zeros, state, params)
    first = kept_units(groups, gp.get_masks(state))
    later = gp.gradual_prune(gp.one_shot_schedule(0.6, 1), structure=structure)
    _, state = later.update(zeros, state, zeros)
    second = kept_units(groups, gp.get_masks(state))
    for old, new in zip(first, second, strict=True):
        assert (new <= old).all()
        assert new.sum() == len(new) - round(0.6 * len(new))


def test_groups_are_selected_by_name():
    params, groups = dense_params(), dense_groups()
    one = groups.select(r"w3\[0\]")
    assert len(one.free) == 1
    _, masks = gp.prune(params, 0.5, structure=gp.CoupledChannels(one))
    assert isinstance(masks["w1"], optax.MaskedNode)
    assert int(kept_units(one, masks)[0].sum()) == 5
    with pytest.raises(ValueError, match="matches none of"):
        groups.select("nothing")
    with pytest.raises(ValueError, match="no regular expression"):
        groups.select("(")
    assert groups.select(lambda group: group.size == 6).groups[0].size == 6


def test_leaves_without_a_free_dimension_stay_dense_or_go_to_the_next_rule():
    params = {**dense_params(), "other": jnp.ones((4, 4))}
    schedule = gp.one_shot_schedule(0.5, 0)
    coupled = gp.Rule(schedule, structure=gp.CoupledChannels(dense_groups()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = gp.gradual_prune([coupled]).init(params)
    assert isinstance(state.masks["other"], optax.MaskedNode)
    planned = gp.plan([coupled, gp.Rule(schedule, where=".*")], params)
    assert {leaf.path: leaf.rule for leaf in planned.leaves}["other"] == 1


def test_it_is_hashable_and_equal_when_made_again():
    again = gp.channel_groups(dense, dense_params(1), jnp.ones((2, 4)))
    assert gp.CoupledChannels(again) == gp.CoupledChannels(dense_groups())
    assert hash(gp.CoupledChannels(again)) == hash(gp.CoupledChannels(dense_groups()))
    assert "multiples of 8" in str(gp.CoupledChannels(again, round_to=8))


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_become_as_small_as_planned(name):
    """Half of every group is pruned, all of it is cut, and outputs stay the same."""
    fn, params, x = network(name)
    groups = gp.channel_groups(fn, params, x)
    structure = gp.CoupledChannels(groups)
    pruned, _ = gp.prune(params, 0.5, structure=structure)
    shrunk = gp.shrink(fn, pruned, x)
    assert_same(fn, pruned, shrunk, x)
    for group in groups.free:
        assert shrunk.sizes[group.name] == (group.size, group.size - group.size // 2)
    planned = gp.plan(gp.one_shot_schedule(0.5, 0), params, structure=structure)
    left = sum(leaf.size for leaf in jax.tree.leaves(shrunk.params))
    assert left == sum(leaf.kept for leaf in planned.leaves)
    assert {group.path: group.kept_units for group in planned.groups} == {
        group.name: group.size - group.size // 2 for group in groups.free
    }


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_traced_sparsity_gives_the_masks_of_the_number(allocation):
    widths = (4, 32, 20, 3)
    params, groups = dense_params(widths=widths), dense_groups(widths)
    structure = gp.CoupledChannels(groups, round_to=8)

    def masks_at(sparsity):
        _, masks = gp.prune(
            params, sparsity, structure=structure, allocation=allocation
        )
        return masks

    sparsities = [0.0, 0.3, 0.9, 1.0]
    together = jax.vmap(masks_at)(jnp.array(sparsities))
    for position, sparsity in enumerate(sparsities):
        for name, mask in masks_at(sparsity).items():
            np.testing.assert_array_equal(together[name][position], mask, name)


def test_the_other_link_and_hyperparameters():
    params, groups = dense_params(), dense_groups()
    fields = {"structure": gp.CoupledChannels(groups)}
    schedule = gp.one_shot_schedule(0.5, 0)
    for tx in (
        gp.with_gradual_prune(optax.sgd(0.1), schedule, **fields),
        optax.inject_hyperparams(gp.gradual_prune)(schedule, **fields),
    ):
        _, state = tx.update(params, tx.init(params), params)
        live = kept_units(groups, gp.get_masks(state))
        assert [int(own.sum()) for own in live] == [3, 5]


def test_many_leaves_of_two_dtypes_are_pruned_outside_one_program():
    count = 70

    def fn(params, x):
        for number in range(count):
            x = jnp.tanh(x @ params[f"{number}"].astype(jnp.float32))
        return x

    rng = np.random.default_rng(0)
    params = {
        f"{number}": jnp.asarray(
            rng.normal(size=(4, 4)), jnp.bfloat16 if number % 2 else jnp.float32
        )
        for number in range(count)
    }
    x = jnp.ones((2, 4))
    groups = gp.channel_groups(fn, params, x)
    pruned, _ = gp.prune(params, 0.5, structure=gp.CoupledChannels(groups))
    shrunk = gp.shrink(fn, pruned, x)
    assert shrunk.params["33"].shape == (2, 2)
    np.testing.assert_allclose(shrunk.fn(shrunk.params, x), fn(pruned, x), rtol=1e-5)
