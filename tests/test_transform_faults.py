"""What does not fit is refused by both links, by the name of the leaf."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradprune_jax as gp


def test_a_leaf_with_more_indices_than_32_bits_is_refused():
    leaf = jax.ShapeDtypeStruct((2**20, 2**12), jnp.bfloat16)
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    state = jax.eval_shape(tx.init, {"kernel": leaf})
    with pytest.raises(ValueError, match="4294967296 weights.*Split it"):
        jax.eval_shape(tx.update, {"kernel": leaf}, state, {"kernel": leaf})
    with_layers = gp.gradual_prune(gp.one_shot_schedule(0.5, 0), stack_axis=1)
    jax.eval_shape(with_layers.update, {"kernel": leaf}, state, {"kernel": leaf})


def test_errors_say_what_is_wrong_and_what_to_do():
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    schedule = gp.one_shot_schedule(0.5, 0)
    tx = gp.gradual_prune(schedule)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"tx.update\(updates, state, params\)"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="updates' tree does not fit"):
        tx.update({"b": 1.0}, state, params)
    with pytest.raises(ValueError, match="masks' tree does not fit"):
        tx.update(params, state._replace(masks={"b": 1.0}), params)
    with pytest.raises(ValueError, match="a mask for 'a/kernel', but the rules do not"):
        rules = [gp.Rule(None, where="a/.*"), gp.Rule(schedule, where="b/.*")]
        both = params | {"b": {"kernel": jnp.ones((2, 2))}}
        gp.gradual_prune(rules).update(both, tx.init(both), both)
    with pytest.raises(ValueError, match="no mask for 'a/kernel', but the rules prune"):
        tx.update(
            params, state._replace(masks={"a": {"kernel": optax.MaskedNode()}}), params
        )


def test_updates_that_do_not_fit_a_pruned_leaf_are_refused_by_name():
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    for update in (None, jnp.ones(2), jnp.ones((2, 1))):
        message = "is None" if update is None else "of 'a/kernel' has shape"
        with pytest.raises(ValueError, match=message):
            tx.update({"a": {"kernel": update}}, tx.init(params), params)
    with pytest.raises(ValueError, match="must be the GradualPruneState"):
        tx.update(params, optax.EmptyState(), params)
    with pytest.raises(ValueError, match="must be an optax optimizer"):
        gp.with_gradual_prune(gp.one_shot_schedule(0.5, 0), optax.sgd(0.1))


def test_masks_restored_as_floats_are_refused():
    """A restore that targets the wrong dtype casts bool masks to float silently."""
    params = {"kernel": jnp.ones((2, 2))}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    state = tx.init(params)
    for masks in ({"kernel": jnp.ones((2, 2))}, {"kernel": jnp.ones((4,), bool)}):
        with pytest.raises(ValueError, match="mask of 'kernel' is .*must be bool"):
            tx.update(params, state._replace(masks=masks), params)


def test_float8_needs_updates_of_its_own_dtype():
    params = {"kernel": jnp.ones((2, 2), jnp.float8_e5m2)}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    with pytest.raises(ValueError, match="'kernel' has dtype float8_e5m2.*cast"):
        tx.update({"kernel": jnp.ones((2, 2))}, tx.init(params), params)


def test_both_links_refuse_what_does_not_fit_by_name():
    params = {"a": {"kernel": jnp.ones((2, 3))}}
    for make, kind in (
        (gp.gradual_prune, "GradualPruneState"),
        (lambda s: gp.with_gradual_prune(optax.sgd(1.0), s), "WithGradualPruneState"),
    ):
        tx = make(gp.one_shot_schedule(0.5, 0))
        state = tx.init(params)
        for shape in ((), (3,), (1, 3), (2, 1)):  # those that would broadcast, too
            with pytest.raises(ValueError, match="of 'a/kernel' has shape"):
                tx.update({"a": {"kernel": jnp.ones(shape)}}, state, params)
        with pytest.raises(ValueError, match=r"of 'a/kernel' has shape \(\)"):
            tx.update({"a": {"kernel": 1.0}}, state, params)
        with pytest.raises(ValueError, match="the updates are None"):
            tx.update(None, state, params)
        with pytest.raises(ValueError, match="needs the parameters"):
            tx.update(params, state)
        with pytest.raises(ValueError, match=f"it must be the {kind} that init made"):
            tx.update(params, optax.EmptyState(), params)
        with pytest.raises(ValueError, match="tree does not fit"):
            tx.update({"b": params["a"]}, state, params)


@pytest.mark.parametrize(
    ("params", "updates"),
    [
        ({"kernel": 1, "bias": None}, {"kernel": 1, "bias": 2}),
        ({"kernel": 1, "b": {"x": 2, "y": 2}}, {"kernel": 1, "b": 2, "z": None}),
        (
            {"a": {}, "b": {"x": 2, "y": 2}, "kernel": 1, "z": 2},
            {"a": 2, "b": 2, "kernel": 1, "z": None},
        ),
    ],
    ids=["no parameter", "other keys", "none and several"],
)
def test_updates_without_their_one_parameter_are_refused(params, updates):
    shapes = {1: (2, 2), 2: (2,)}
    params, updates = (
        jax.tree.map(lambda kind: jnp.ones(shapes[kind]), tree)
        for tree in (params, updates)
    )
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    with pytest.raises(ValueError, match="the updates' tree does not fit the param"):
        tx.update(updates, tx.init(params), params)
