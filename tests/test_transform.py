"""The transformation: whole runs against a sort, and what every step promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprune_jax as gp
from tests import oracle
from tests.helpers import enable_x64


def noisy(rng, scale=0.3):
    """Updates of random size, in the parameter's dtype."""

    def update(step, params):
        return jax.tree.map(
            lambda p: jnp.asarray(
                rng.normal(size=p.shape) * scale * (rng.random(p.shape) < 0.7), p.dtype
            ),
            params,
        )

    return update


trees = st.lists(
    st.tuples(
        st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["float32", "bfloat16", "float16"]),
    ),
    min_size=1,
    max_size=3,
)
schedules = st.builds(
    lambda final, begin, length, every, initial: gp.polynomial_schedule(
        final, begin, begin + length, every, initial
    ),
    st.floats(0, 1, width=32),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3]),
)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@settings(max_examples=5)
@given(tree=trees, schedule=schedules, seed=st.integers(0, 2**32 - 1))
def test_whole_runs_agree_with_a_stable_sort(allocation, tree, schedule, seed):
    rng = np.random.default_rng(seed)
    params = {
        f"w{i}": jnp.asarray(oracle.difficult_weights(rng, shape, dtype))
        for i, (shape, dtype) in enumerate(tree)
    }
    tx = gp.gradual_prune(schedule, where=".*", allocation=allocation)
    oracle.assert_follows(
        tx, schedule, params, 11, update=noisy(rng), allocation=allocation
    )


def test_a_run_in_float64():
    with enable_x64():
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.normal(size=(30, 7)))}
        schedule = gp.polynomial_schedule(0.8, 0, 6, every=2)
        tx = gp.gradual_prune(schedule, where="w")
        final = oracle.assert_follows(tx, schedule, params, 8, update=noisy(rng))
        assert final["w"].dtype == jnp.float64


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
def test_a_run_in_float8(dtype):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(12, 8)), dtype)}
    schedule = gp.polynomial_schedule(0.8, 0, 6, every=2)
    tx = gp.gradual_prune(schedule, where="w")
    oracle.assert_follows(tx, schedule, params, 8, update=noisy(rng))


def test_several_rules_each_on_its_own_schedule():
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=(9, 5)), jnp.float32) for name in "abc"}
    one, other = gp.polynomial_schedule(0.9, 0, 4, 2), gp.one_shot_schedule(0.5, 3)
    tx = gp.gradual_prune([gp.Rule(one, where="a"), gp.Rule(other, where="b")])
    state, update = tx.init(params), jax.jit(tx.update)
    draw = noisy(rng)
    masks = {name: np.ones((9, 5), bool) for name in "ab"}
    for step in range(6):
        for name, schedule in (("a", one), ("b", other)):
            if schedule.is_update_step(step):
                masks[name] = oracle.next_masks(
                    [np.asarray(params[name])],
                    [masks[name]],
                    float(schedule.sparsity(step)),
                )[0]
        updates, state = update(draw(step, params), state, params)
        params = optax.apply_updates(params, updates)
        for name, mask in masks.items():
            np.testing.assert_array_equal(state.masks[name], mask)
    assert isinstance(state.masks["c"], optax.MaskedNode)


def test_scores_come_from_the_weights_handed_in_not_from_weights_plus_updates():
    params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
    updates = {"kernel": jnp.array([[-4.0, -3.0, 0.0, 9.0]])}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    _, state = tx.update(updates, tx.init(params), params)
    np.testing.assert_array_equal(state.masks["kernel"], [[True, True, False, False]])


def test_masks_never_grow_where_a_schedule_falls():
    falling = gp.custom_schedule(lambda step: 0.75 if step == 0 else 0.25, 0, 2, 1)
    params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
    tx = gp.gradual_prune(falling)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.masks["kernel"].sum()) == 2


@pytest.mark.parametrize("weight", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("update", ["float32", "bfloat16", "float16"])
def test_exact_zero_whatever_the_dtypes_of_weights_and_updates(weight, update):
    """float32 parameters with bfloat16 updates left a residue of 0.0002 to 0.005."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(40, 30)), weight)}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    state = tx.init(params)
    for _ in range(3):
        updates = {"kernel": jnp.asarray(rng.normal(size=(40, 30)), update)}
        updates, state = jax.jit(tx.update)(updates, state, params)
        assert updates["kernel"].dtype == jnp.promote_types(weight, update)
        params = optax.apply_updates(params, updates)
        assert params["kernel"].dtype == weight
        pruned = np.asarray(params["kernel"])[~np.asarray(state.masks["kernel"])]
        assert pruned.size == 600
        assert (pruned.view(f"u{pruned.itemsize}") == 0).all()


def test_live_weights_get_their_update_to_the_last_bit():
    """mask * (p + u) - p rounds the weights that live."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(1e3 * rng.normal(size=(9, 9)), jnp.float32)}
    updates = {"kernel": jnp.asarray(1e-3 * rng.normal(size=(9, 9)), jnp.float32)}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    new, state = tx.update(updates, tx.init(params), params)
    mask = np.asarray(state.masks["kernel"])
    np.testing.assert_array_equal(
        np.asarray(new["kernel"])[mask], np.asarray(updates["kernel"])[mask]
    )


def test_pruned_weights_are_plus_zero_even_if_nan_updates_or_negative_zeros_come():
    """param * mask: NaN stays NaN, negative weights become -0.0."""
    params = {"kernel": jnp.array([[5.0, -1.0, -0.0, 0.5]])}
    updates = {"kernel": jnp.array([[1.0, jnp.nan, jnp.inf, -jnp.inf]])}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.75, 0))
    updates, _ = tx.update(updates, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(
        np.asarray(params["kernel"]).view(np.uint32)[0, 1:], [0, 0, 0]
    )
    assert params["kernel"][0, 0] == 6


def test_nan_ranks_above_infinity_so_that_divergence_is_seen():
    params = {"kernel": jnp.array([[1.0, jnp.inf, 3.0, jnp.nan]])}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.75, 0))
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_array_equal(state.masks["kernel"], [[False, False, False, True]])
    with pytest.raises(ValueError, match="'kernel': 2 weights are not finite"):
        gp.check_pruned(optax.apply_updates(params, updates), state)


@pytest.mark.parametrize("structure", [None, gp.Channel(), gp.NM(2, 4, axis=-1)])
def test_parameters_may_be_numpy_arrays_outside_jit(structure):
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0), structure=structure)
    params = {"kernel": np.array([[1.0, -2.0, 3.0, -4.0]])}  # float64, unlike JAX's
    updates, state = tx.update({"kernel": np.zeros((1, 4))}, tx.init(params), params)
    np.testing.assert_array_equal(state.masks["kernel"], [[False, False, True, True]])
    new = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(new["kernel"], [[0.0, 0.0, 3.0, -4.0]])


def test_dense_leaves_pass_through_untouched():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "step": 3}
    updates = {"kernel": jnp.ones((2, 2)), "bias": jnp.full(2, 7.0), "step": 0}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    new, state = tx.update(updates, tx.init(params), params)
    assert new["bias"] is updates["bias"]
    assert isinstance(state.masks["bias"], optax.MaskedNode)
    assert isinstance(state.masks["step"], optax.MaskedNode)


def test_state_is_a_count_and_masks_and_nothing_else():
    params = {"a": {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": jnp.ones(2)}}
    state = gp.gradual_prune(gp.one_shot_schedule(0.5, 9)).init(params)
    assert state._fields == ("count", "masks")
    assert state.count.dtype == jnp.int32
    assert state.count.shape == ()
    assert [leaf.dtype for leaf in jax.tree.leaves(state.masks)] == [bool]
    assert bool(state.masks["a"]["kernel"].all())


def test_a_zero_size_leaf_is_pruned_of_nothing():
    params = {"kernel": jnp.ones((0, 4)), "other": {"kernel": jnp.ones((2, 4))}}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    assert state.masks["kernel"].shape == updates["kernel"].shape == (0, 4)
    assert int(state.masks["other"]["kernel"].sum()) == 4


def test_init_of_a_tree_without_leaves():
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    for empty in ({}, optax.MaskedNode(), (), {"a": None}):
        assert jax.tree.leaves(tx.init(empty).masks) == []


def test_unknown_extra_arguments_are_ignored():
    params = {"kernel": jnp.ones((2, 2))}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    tx.update(params, tx.init(params), params, value=1.0, loss_fn=print)


def test_library_code_passes_under_strict_dtype_and_rank_promotion():
    params = {
        "a": jnp.ones((4, 4)),
        "b": jnp.ones((2, 3), jnp.bfloat16),
        "c": jnp.ones((4, 2)),
        "large": jnp.ones((2, 256, 256)),
    }
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        schedule = gp.polynomial_schedule(0.5, 0, 4, 2)
        for fields in (
            {},
            dict(allocation="global", min_density=0.1),
            dict(stack_axis=0),
            dict(structure=gp.NM(1, 2, axis=0), where="[ac]"),
            dict(structure=gp.Block((1, 2)), min_per_channel=1),
        ):
            tx = gp.gradual_prune(schedule, **{"where": ".*", **fields})
            state = tx.init(params)
            updates, state = jax.jit(tx.update)(params, state, params)
            gp.metrics(state)


class TestWithGradualPrune:
    def test_the_inner_optimizer_sees_the_gradients_of_live_weights_only(self):
        seen = []

        def record(updates, state, params=None):
            seen.append(updates["kernel"])
            return updates, state

        inner = optax.GradientTransformation(lambda p: optax.EmptyState(), record)
        tx = gp.with_gradual_prune(inner, gp.one_shot_schedule(0.5, 0))
        params = {"kernel": jnp.array([[4.0, 1.0], [3.0, 2.0]])}
        gradients = {"kernel": jnp.array([[1.0, jnp.nan], [1.0, 1.0]])}
        state = tx.init(params)
        assert isinstance(state, gp.WithGradualPruneState)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        tx.update(gradients, state, params)
        # The masks as they stood before the step: dense, then half.
        np.testing.assert_array_equal(seen[0], gradients["kernel"])
        np.testing.assert_array_equal(seen[1], [[1.0, 0.0], [1.0, 0.0]])

    def test_global_norm_clipping_counts_live_weights_only(self):
        schedule = gp.one_shot_schedule(0.5, 0)
        clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
        params = {"kernel": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
        gradients = {"kernel": jnp.array([[0.6, 0.8, 100.0, 100.0]])}
        tx = gp.with_gradual_prune(clipped, schedule)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(updates["kernel"][0, :2], [-0.6, -0.8], rtol=1e-6)

    def test_same_masks_as_the_link_and_extra_args_reach_the_inner_optimizer(self):
        params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
        schedule = gp.polynomial_schedule(0.75, 0, 2, 1)
        plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
        wrapped = gp.with_gradual_prune(plateau, schedule)
        linked = optax.chain(optax.sgd(0.1), gp.gradual_prune(schedule))
        states = wrapped.init(params), linked.init(params)
        for _ in range(3):
            _, one = wrapped.update(params, states[0], params, value=1.0)
            _, other = linked.update(params, states[1], params)
            states = one, other
        np.testing.assert_array_equal(
            gp.get_masks(one)["kernel"], gp.get_masks(other)["kernel"]
        )

    def test_parameters_are_required(self):
        params = {"kernel": jnp.ones((2, 2))}
        tx = gp.with_gradual_prune(optax.sgd(0.1), gp.one_shot_schedule(0.5, 0))
        with pytest.raises(ValueError, match="needs the parameters"):
            tx.update(params, tx.init(params))


def test_leaves_of_one_name_have_masks_of_their_own():
    """Two of these paths are printed alike, and a third is what tells them apart."""
    params = {
        "a": {"0": jnp.arange(1.0, 5).reshape(2, 2)},
        "a/0": -jnp.array([[8.0, 6], [4, 2]]),
        "['a']['0']": jnp.array([[1.0, 9], [8, 2]]),
    }
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0), where=".*")
    masks = tx.update(params, tx.init(params), params)[1].masks
    for leaf, mask in zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True):
        magnitudes = np.abs(leaf)
        np.testing.assert_array_equal(mask, magnitudes > np.sort(magnitudes, None)[1])
