"""Masks read, set, applied; sparsity, metrics, and the check of the promise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradprune_jax as gp

SCHEDULE = gp.one_shot_schedule(0.5, 0)


def trained():
    """Parameters and state of one pruning step."""
    rng = np.random.default_rng(0)
    params = {
        "a": {
            "kernel": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
            "bias": jnp.zeros(6),
        },
        "b": {"kernel": jnp.asarray(rng.normal(size=(6, 2)), jnp.bfloat16)},
    }
    tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(SCHEDULE))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    return tx, optax.apply_updates(params, updates), state


class TestGetMasks:
    def test_returns_a_tree_to_map_over_with_the_parameters(self):
        _, params, state = trained()
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
        tx, params, state = trained()
        masks = {"a": {"kernel": optax.MaskedNode(), "bias": optax.MaskedNode()}}
        masks["b"] = {"kernel": jnp.zeros((6, 2), bool)}
        new = gp.set_masks(state, masks)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert int(gp.metrics(new)["count"]) == 1
        assert bool(gp.get_masks(new)["a"]["kernel"].all())
        assert not bool(gp.get_masks(new)["b"]["kernel"].any())

    def test_works_under_jit(self):
        _, params, state = trained()
        masks = gp.get_masks(state)
        new = jax.jit(gp.set_masks)(state, masks)
        jax.tree.map(np.testing.assert_array_equal, gp.get_masks(new), masks)

    def test_refuses_masks_that_do_not_fit(self):
        _, params, state = trained()
        masks = gp.get_masks(state)
        with pytest.raises(ValueError, match=r"'a/kernel' is float32\[4, 6\].*bool"):
            gp.set_masks(state, jax.tree.map(lambda m: m.astype(jnp.float32), masks))
        with pytest.raises(ValueError, match=r"the tree has .*'b'\], the masks have"):
            gp.set_masks(state, {"a": masks["a"]})

    def test_masks_of_leaves_that_are_dense_in_the_state_are_not_used(self):
        _, params, state = trained()
        masks = jax.tree.map(lambda leaf: leaf != 0, params)
        new = gp.set_masks(state, masks)
        assert isinstance(gp.get_masks(new)["a"]["bias"], optax.MaskedNode)
        gp.check_pruned(params, new)


class TestMasksFromParams:
    def test_are_where_floating_leaves_are_not_zero(self):
        _, params, state = trained()
        masks = gp.masks_from_params(params)
        expected = jax.tree.map(lambda leaf: leaf != 0, params)
        jax.tree.map(np.testing.assert_array_equal, masks, expected)
        weights = gp.masks_from_params(params, where=gp.is_weight)
        jax.tree.map(np.testing.assert_array_equal, weights, gp.get_masks(state))
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

    def test_refuses_masks_of_another_tree_or_shape(self):
        params = {"kernel": jnp.ones((2, 3))}
        with pytest.raises(
            ValueError, match="keys \\['kernel'\\], the masks have the keys \\['w'\\]"
        ):
            gp.apply_masks(params, {"w": jnp.ones((2, 3), bool)})
        with pytest.raises(ValueError, match=r"mask of 'kernel' is bool\[3, 2\]"):
            gp.apply_masks(params, {"kernel": jnp.ones((3, 2), bool)})


class TestSparsity:
    def test_of_parameters_and_of_masks(self):
        _, params, state = trained()
        assert {k: float(v) for k, v in gp.sparsity(params).items()} == {
            "a/bias": 0.0,
            "a/kernel": 0.5,
            "b/kernel": 0.5,
            "total": pytest.approx(18 / 42),
        }
        masks = gp.sparsity(gp.get_masks(state))
        assert {k: float(v) for k, v in masks.items()} == {
            "a/kernel": 0.5,
            "b/kernel": 0.5,
            "total": 0.5,
        }

    def test_counts_zeros_of_both_signs_and_no_integers_or_keys(self):
        tree = {
            "w": jnp.array([0.0, -0.0, jnp.nan, 1.0]),
            "steps": jnp.zeros(3, jnp.int32),
            "key": jax.random.key(0),
            "empty": jnp.zeros((0, 2)),
        }
        assert {k: float(v) for k, v in gp.sparsity(tree).items()} == {
            "w": 0.5,
            "empty": 0.0,
            "total": 0.5,
        }
        assert float(gp.sparsity({})["total"]) == 0

    def test_a_parameter_named_total_does_not_hide_the_total(self):
        fractions = gp.sparsity({"total": jnp.zeros(3), "w": jnp.ones(1)})
        assert {k: float(v) for k, v in fractions.items()} == {
            "['total']": 1.0,
            "w": 0.0,
            "total": 0.75,
        }

    def test_paths_that_print_alike_are_kept_apart(self):
        tree = {"a": {"0": jnp.zeros(2)}, "a/0": jnp.ones(2)}
        assert set(gp.sparsity(tree)) == {"['a']['0']", "['a/0']", "total"}

    def test_metrics_are_scalars_computable_under_jit(self):
        _, _, state = trained()
        eager, jitted = gp.metrics(state), jax.jit(gp.metrics)(state)
        assert set(eager) == {
            "count",
            "sparsity/total",
            "sparsity/a/kernel",
            "sparsity/b/kernel",
        }
        for name, value in eager.items():
            assert value.shape == ()
            assert value == jitted[name]


class TestCheckPruned:
    def test_names_every_path_and_its_count(self):
        _, params, state = trained()
        gp.check_pruned(params, state)
        revived = jax.tree.map(lambda leaf: leaf + 1, params)
        with pytest.raises(
            ValueError, match="'a/kernel': 12 pruned.*'b/kernel': 6 pruned"
        ):
            gp.check_pruned(revived, state)
        params["a"]["bias"] = params["a"]["bias"].at[2].set(jnp.inf)
        with pytest.raises(ValueError, match="'a/bias': 1 weights are not finite"):
            gp.check_pruned(params, state)

    def test_is_refused_under_jit(self):
        _, params, state = trained()
        with pytest.raises(ValueError, match="cannot run under jit"):
            jax.jit(gp.check_pruned)(params, state)

    def test_refuses_parameters_of_another_model(self):
        _, params, state = trained()
        with pytest.raises(ValueError, match="masks do not fit"):
            gp.check_pruned({"a": params["a"]}, state)
