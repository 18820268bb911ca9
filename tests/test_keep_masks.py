"""Masks that stay: the same promises as gradual pruning, without a schedule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp


def dense():
    keys = jax.random.split(jax.random.key(0))
    return {"a": {"kernel": jax.random.normal(keys[0], (8, 8))}, "bias": jnp.zeros(8)}


def train(tx, params, steps=3):
    state = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(steps):
        gradients = jax.tree.map(jnp.cos, params)
        updates, state = step(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_pruned_weights_stay_zero_and_the_others_train():
    params, masks = gp.prune(dense(), 0.75)
    tx = optax.chain(optax.adamw(1e-2), gp.keep_masks(masks))
    trained, state = train(tx, params)
    gp.check_pruned(trained, state)
    np.testing.assert_array_equal(
        np.asarray(trained["a"]["kernel"]) != 0, masks["a"]["kernel"]
    )
    assert (trained["bias"] != 0).all()
    assert gp.metrics(state)["count"] == 3


def test_parameters_that_are_dense_are_pruned_by_the_first_step():
    """A rewound lottery ticket: the initial weights, with the masks of the end."""
    _, masks = gp.prune(dense(), 0.5)
    trained, state = train(gp.keep_masks(masks), dense(), steps=1)
    gp.check_pruned(trained, state)


def test_it_goes_where_the_other_link_goes():
    params, masks = gp.prune(dense(), 0.5)
    tx = optax.MultiSteps(optax.chain(optax.adam(1e-2), gp.keep_masks(masks)), 2)
    trained, state = train(tx, params)
    gp.check_pruned(trained, state)
    doubled = optax.tree.map_params(
        tx, lambda leaf: leaf, state, transform_non_params=lambda leaf: leaf
    )
    chex.assert_trees_all_equal_structs(doubled, state)
    rewound = gp.set_masks(state, gp.prune(dense(), 0.75)[1])
    assert gp.metrics(rewound)["sparsity/total"] == 0.75


def test_masks_are_laid_out_as_their_weights():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params, masks = gp.prune(dense(), 0.5)
    sharding = NamedSharding(mesh, P("x"))
    placed = jax.device_put(params, sharding)
    masks = jax.tree.map(np.asarray, masks)
    for init in (gp.keep_masks(masks).init, jax.jit(gp.keep_masks(masks).init)):
        mask = init(placed).masks["a"]["kernel"]
        assert mask.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_array_equal(mask, masks["a"]["kernel"])


def test_a_model_of_nnx():
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    masks = gp.masks_from_params(nnx.state(model, nnx.Param), where="kernel")
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.sgd(0.1), gp.keep_masks(masks)), wrt=nnx.Param
    )
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert gp.get_masks(optimizer)["kernel"].all()


def test_a_model_of_equinox():
    equinox = pytest.importorskip("equinox")
    mlp = equinox.nn.MLP(4, 2, 4, 1, key=jax.random.key(0))
    pruned, masks = gp.prune(equinox.filter(mlp, equinox.is_array), 0.5)
    tx = gp.keep_masks(masks)
    gradients = equinox.filter_grad(lambda m: jnp.sum(m(jnp.ones(4))))(mlp)
    updates, state = tx.update(gradients, tx.init(pruned), mlp)
    gp.check_pruned(equinox.apply_updates(mlp, updates), state)


@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_a_part_of_the_parameters(wrapper):
    """What a wrapper hides from the link is no leaf of its parameters."""
    params, masks = gp.prune(dense(), 0.75)
    if wrapper == "masked":
        tx = optax.masked(gp.keep_masks(masks), {"a": True, "bias": False})
    else:
        links = {"sparse": gp.keep_masks(masks), "dense": optax.sgd(0.1)}
        tx = optax.partition(links, {"a": "sparse", "bias": "dense"})
    trained, state = train(tx, params)
    np.testing.assert_array_equal(
        np.asarray(trained["a"]["kernel"]) != 0, masks["a"]["kernel"]
    )
    assert gp.metrics(state)["sparsity/a/kernel"] == 0.75


def test_masks_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match="'a/kernel'"):
        gp.keep_masks({"a": {"kernel": jnp.ones(3, bool)}, "bias": None}).init(dense())
    with pytest.raises(ValueError, match="needs the parameters"):
        gp.keep_masks({}).init(None)
    zeroless = {"kernel": jnp.ones(3, jnp.float8_e8m0fnu)}
    for refuse in (gp.apply_masks, lambda p, m: gp.keep_masks(m).init(p)):
        with pytest.raises(ValueError, match="'kernel'.*float8_e8m0fnu has no zero"):
            refuse(zeroless, {"kernel": jnp.ones(3, bool)})
