"""Masks as trees: read, set, taken from parameters, applied."""

import collections

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp
from tests.one_step import SCHEDULE, train_one_step


class TestGetMasks:
    def test_returns_a_tree_to_map_over_with_the_parameters(self):
        _, params, state = train_one_step()
        masks = gp.get_masks(state)
        kept = jax.tree.map(
            lambda p, m: p.size if isinstance(m, optax.MaskedNode) else int(m.sum()),
            params,
            masks,
        )
        assert kept == {"a": {"kernel": 12, "bias": 6}, "b": {"kernel": 6}}

    def test_refuses_a_state_without_pruning(self):
        for state in (optax.adam(0.1).init({"kernel": jnp.ones(2)}), {}, None):
            with pytest.raises(ValueError, match="no GradualPruneState.*tx.init"):
                gp.get_masks(state)

    def test_refuses_masks_of_several_trees(self):
        tx = gp.gradual_prune(SCHEDULE)
        states = [
            tx.init({"kernel": jnp.ones((2, 2))}),
            tx.init({"w": jnp.ones((2, 2))}),
        ]
        with pytest.raises(ValueError, match="several models"):
            gp.get_masks(states)

    def test_of_shapes_to_restore_into(self):
        schedule = gp.one_shot_schedule(0.5, 0)
        one, two = (gp.gradual_prune(schedule, where=w) for w in (".*kernel", ".*"))
        params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
        masks = gp.get_masks(jax.eval_shape(optax.chain(one, two).init, params))
        assert masks["kernel"] == jax.ShapeDtypeStruct((2, 2), bool)
        assert masks["bias"] == jax.ShapeDtypeStruct((2,), bool)

    def test_merges_dicts_of_any_order_by_key(self):
        wide = jnp.array([True, False, True])
        states = [
            gp.GradualPruneState(jnp.int32(0), masks)
            for masks in (
                {"a": wide, "b": optax.MaskedNode()},
                collections.OrderedDict(b=None, a=jnp.array([True, True, False])),
                collections.OrderedDict(b=~wide, a=optax.MaskedNode()),
            )
        ]
        merged = gp.get_masks(states)
        np.testing.assert_array_equal(merged["a"], [True, False, False])
        np.testing.assert_array_equal(merged["b"], [False, True, False])


class TestSetMasks:
    def test_starts_from_a_sparse_model(self):
        rng = np.random.default_rng(0)
        sparse = rng.normal(size=(8, 8)) * (rng.random((8, 8)) < 0.3)
        params = {
            "a": {"kernel": jnp.asarray(sparse, jnp.float32), "bias": jnp.zeros(8)}
        }
        tx = optax.chain(
            optax.adam(0.1), gp.gradual_prune(gp.one_shot_schedule(0.5, 100))
        )
        state = gp.set_masks(tx.init(params), gp.masks_from_params(params))
        for _ in range(3):
            updates, state = tx.update(
                jax.tree.map(jnp.ones_like, params), state, params
            )
            params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params["a"]["kernel"] != 0, sparse != 0)
        assert bool((params["a"]["bias"] != 0).all())

    def test_keeps_count_structure_and_sharding_and_treats_dense_as_all_kept(self):
        tx, params, state = train_one_step()
        masks = {"a": {"kernel": optax.MaskedNode(), "bias": optax.MaskedNode()}}
        masks["b"] = {"kernel": jnp.zeros((6, 2), bool)}
        new = gp.set_masks(state, masks)
        chex.assert_trees_all_equal_structs(new, state)
        assert int(gp.metrics(new)["count"]) == 1
        assert bool(gp.get_masks(new)["a"]["kernel"].all())
        assert not bool(gp.get_masks(new)["b"]["kernel"].any())

    def test_masks_are_bound_to_a_device_only_if_the_old_ones_are(self):
        """Else the next step would be compiled anew, and could not go to a mesh."""
        tx, params, state = train_one_step()
        rewound = gp.set_masks(state, gp.get_masks(state))
        step = jax.jit(tx.update)
        for each in (state, rewound):
            step(params, each, params)
        assert step._cache_size() == 1
        device = jax.devices()[3]
        bound = gp.set_masks(jax.device_put(state, device), gp.get_masks(state))
        assert gp.get_masks(bound)["a"]["kernel"].devices() == {device}
        params = jax.device_put(params, device)
        step(params, rewound, params)

    def test_works_under_jit(self):
        _, params, state = train_one_step()
        masks = gp.get_masks(state)
        new = jax.jit(gp.set_masks)(state, masks)
        chex.assert_trees_all_equal(gp.get_masks(new), masks)

    def test_a_restored_state_may_hold_numpy_arrays(self):
        _, _, state = train_one_step()
        masks = {
            "a": {"kernel": np.eye(4, 6) == 1, "bias": None},
            "b": {"kernel": optax.MaskedNode()},
        }
        new = gp.set_masks(jax.tree.map(np.asarray, state), masks)
        np.testing.assert_array_equal(gp.get_masks(new)["a"]["kernel"], np.eye(4, 6))
        assert gp.get_masks(new)["b"]["kernel"].all()

    def test_refuses_masks_that_do_not_fit(self):
        _, params, state = train_one_step()
        masks = gp.get_masks(state)
        with pytest.raises(ValueError, match="mask of 'a/kernel' is True; it must be"):
            gp.set_masks(state, jax.tree.map(lambda m: True, masks))
        with pytest.raises(ValueError, match=r"'a/kernel' is float32\[4, 6\].*bool"):
            gp.set_masks(state, jax.tree.map(lambda m: m.astype(jnp.float32), masks))
        with pytest.raises(ValueError, match=r"the tree has .*'b'\], the masks have"):
            gp.set_masks(state, {"a": masks["a"]})

    def test_masks_of_leaves_that_are_dense_in_the_state_are_not_used(self):
        _, params, state = train_one_step()
        masks = jax.tree.map(lambda leaf: leaf != 0, params)
        new = gp.set_masks(state, masks)
        assert isinstance(gp.get_masks(new)["a"]["bias"], optax.MaskedNode)
        gp.check_pruned(params, new)


class TestMasksFromParams:
    def test_are_where_floating_leaves_are_not_zero(self):
        _, params, state = train_one_step()
        masks = gp.masks_from_params(params)
        expected = jax.tree.map(lambda leaf: leaf != 0, params)
        chex.assert_trees_all_equal(masks, expected)
        weights = gp.masks_from_params(params, where=gp.is_weight)
        chex.assert_trees_all_equal(weights, gp.get_masks(state))
        assert gp.masks_from_params({"step": jnp.ones(2, int)}) == {
            "step": optax.MaskedNode()
        }

    def test_a_sparse_model_under_any_name_stays_sparse(self):
        params = {"x": jnp.eye(4)}
        tx = gp.gradual_prune(gp.one_shot_schedule(0.75, 10), where="x")
        state = gp.set_masks(tx.init(params), gp.masks_from_params(params))
        updates, state = tx.update({"x": jnp.ones((4, 4))}, state, params)
        np.testing.assert_array_equal(
            optax.apply_updates(params, updates)["x"], 2 * np.eye(4)
        )

    def test_denormals_are_not_zero(self):
        masks = gp.masks_from_params(jnp.array([1e-40, 0.0, -0.0], jnp.float32))
        np.testing.assert_array_equal(masks, [True, False, False])

    def test_where_must_match_a_floating_leaf(self):
        params = {"hidden": {"kernel": jnp.ones((2, 2))}, "step": jnp.ones(2, int)}
        for where in ("hiden/kernel", lambda path, leaf: False):
            with pytest.raises(ValueError, match="matches no parameter.*'hidden/kern"):
                gp.masks_from_params(params, where=where)
        with pytest.raises(ValueError, match="'step' has dtype int.*narrow where"):
            gp.masks_from_params(params, where=".*")

    def test_of_an_nnx_state_are_plain_arrays(self):
        state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
        masks = gp.masks_from_params(state)
        assert isinstance(masks["kernel"], jax.Array)
        gp.apply_masks(state, masks)


class TestApplyMasks:
    def test_selects_and_leaves_dense_leaves_alone(self):
        params = {"kernel": jnp.array([jnp.nan, -3.0, 2.0]), "bias": jnp.ones(2)}
        masks = {
            "kernel": jnp.array([False, False, True]),
            "bias": optax.MaskedNode(),
        }
        applied = gp.apply_masks(params, masks)
        assert applied["bias"] is params["bias"]
        np.testing.assert_array_equal(
            np.asarray(applied["kernel"]).view(np.uint32),
            np.array([0.0, 0.0, 2.0], np.float32).view(np.uint32),
        )

    def test_keeps_numpy_arrays_that_jax_would_narrow(self):
        weights = np.array([1 / 3, 1e-300])
        applied = gp.apply_masks(weights, np.array([True, False]))
        assert applied.dtype == np.float64
        assert applied.tolist() == [1 / 3, 0.0]

    def test_matches_keys_by_name_in_dicts_of_any_order(self):
        a, b = jnp.array([True, False]), jnp.array([False, True])
        ordered = collections.OrderedDict(
            b=jnp.ones(2), a=jnp.ones(2), c=(jnp.ones(2),)
        )
        masks = {"c": [None], "a": a, "b": b}
        applied = gp.apply_masks(ordered, masks)
        assert list(applied) == ["b", "a", "c"]
        np.testing.assert_array_equal(applied["a"], a)
        np.testing.assert_array_equal(applied["b"], b)
        back = gp.apply_masks(dict(ordered), collections.OrderedDict(b=b, c=None, a=a))
        np.testing.assert_array_equal(back["a"], a)
        np.testing.assert_array_equal(back["b"], b)

    def test_refuses_masks_of_another_tree_or_shape(self):
        params = {"kernel": jnp.ones((2, 3))}
        with pytest.raises(ValueError, match="mask for 'kernel', which is 1.5 and no"):
            gp.apply_masks({"kernel": 1.5}, {"kernel": jnp.ones((), bool)})
        with pytest.raises(
            ValueError, match="keys \\['kernel'\\], the masks have the keys \\['w'\\]"
        ):
            gp.apply_masks(params, {"w": jnp.ones((2, 3), bool)})
        with pytest.raises(ValueError, match=r"mask of 'kernel' is bool\[3, 2\]"):
            gp.apply_masks(params, {"kernel": jnp.ones((3, 2), bool)})
