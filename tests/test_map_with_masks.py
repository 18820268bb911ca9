"""A function over pruned leaves, in every container and box."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import gradprune_jax as gp

KERNEL = jnp.array([[3.0, -1.0], [0.5, 2.0]])
BIAS = jnp.ones(2)


def doubled_or_nothing(leaf, mask):
    return jnp.where(mask, 2 * leaf, 0)


def expected(masks):
    return {
        "kernel": jnp.where(masks["kernel"], 2 * KERNEL, 0),
        "bias": BIAS,
    }


def test_pruned_leaves_are_mapped_and_dense_ones_kept():
    params = {"kernel": KERNEL, "bias": BIAS}
    _, masks = gp.prune(params, 0.5)
    mapped = gp.map_with_masks(doubled_or_nothing, params, masks)
    chex.assert_trees_all_equal(mapped, expected(masks))
    assert mapped["bias"] is params["bias"]


def test_a_result_of_any_kind_takes_the_place_of_a_leaf():
    params = {"kernel": KERNEL, "bias": BIAS}
    _, masks = gp.prune(params, 0.5)
    kept = gp.map_with_masks(lambda leaf, mask: int(mask.sum()), params, masks)
    assert kept["kernel"] == 2
    jitted = jax.jit(lambda p, m: gp.map_with_masks(doubled_or_nothing, p, m))
    chex.assert_trees_all_equal(jitted(params, masks), expected(masks))


def test_boxed_parameters_stay_boxed():
    params = {"kernel": nn.Partitioned(KERNEL, names=("in", "out")), "bias": BIAS}
    _, masks = gp.prune({"kernel": KERNEL, "bias": BIAS}, 0.5)
    mapped = gp.map_with_masks(doubled_or_nothing, params, masks)
    assert mapped["kernel"].names == ("in", "out")
    chex.assert_trees_all_equal(nn.meta.unbox(mapped), expected(masks))


def test_a_model_of_nnx_becomes_a_new_model():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    before = nnx.state(model, nnx.Param).kernel[...]
    _, masks = gp.prune(nnx.state(model, nnx.Param), 0.5)
    mapped = gp.map_with_masks(doubled_or_nothing, model, masks)
    assert isinstance(mapped, nnx.Linear)
    chex.assert_trees_all_equal(
        mapped.kernel[...],
        jnp.where(masks["kernel"][...], 2 * before, 0),
    )
    chex.assert_trees_all_equal(model.kernel[...], before)


def test_a_model_of_equinox_keeps_its_functions():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    _, masks = gp.prune(eqx.filter(model, eqx.is_array), 0.5)
    mapped = gp.map_with_masks(doubled_or_nothing, model, masks)
    assert mapped.activation is model.activation
    chex.assert_trees_all_equal(
        mapped.layers[0].weight,
        jnp.where(masks.layers[0].weight, 2 * model.layers[0].weight, 0),
    )


def test_masks_of_another_tree_are_refused():
    params = {"kernel": KERNEL, "bias": BIAS}
    with pytest.raises(ValueError, match="the masks do not fit the tree"):
        gp.map_with_masks(doubled_or_nothing, params, {"kernel": optax.MaskedNode()})
