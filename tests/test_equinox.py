"""Equinox: models are trees that hold functions, None and integers beside arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp

equinox = pytest.importorskip("equinox")


class Classifier(equinox.Module):
    cell: equinox.nn.GRUCell
    head: equinox.nn.MLP
    scale: float
    steps: int
    label: str
    nothing: None

    def __init__(self):
        keys = jax.random.split(jax.random.key(0))
        self.cell = equinox.nn.GRUCell(3, 4, key=keys[0])
        self.head = equinox.nn.MLP(4, 2, 6, 1, jax.nn.gelu, key=keys[1])
        self.scale, self.steps, self.label, self.nothing = 0.5, 3, "gru", None


WHERE = ".*/weight(_.h)?"
PRUNED = {
    *("cell/weight_ih", "cell/weight_hh"),
    *("head/layers/0/weight", "head/layers/1/weight"),
}


@pytest.fixture(scope="module")
def trained():
    """A model, and the state of an optimizer that got its arrays alone."""
    model = Classifier()
    params, static = equinox.partition(model, equinox.is_array)
    tx = optax.chain(
        optax.sgd(0.1), gp.gradual_prune(gp.one_shot_schedule(0.5, 0), where=WHERE)
    )
    updates, state = tx.update(
        jax.tree.map(jnp.ones_like, params), tx.init(params), params
    )
    return equinox.combine(optax.apply_updates(params, updates), static), state


def test_a_whole_model_is_checked(trained):
    model, state = trained
    gp.check_pruned(model, state)
    dense = Classifier()
    with pytest.raises(ValueError, match="'cell/weight_hh': 24 pruned weights are not"):
        gp.check_pruned(dense, state)
    found = gp.sparsity(model)
    assert {name for name, value in found.items() if value == 0.5} == PRUNED


def test_masks_are_applied_to_a_whole_model(trained):
    model, state = trained
    dense = Classifier()
    applied = gp.apply_masks(dense, gp.get_masks(state))
    gp.check_pruned(applied, state)
    assert applied.head.activation is dense.head.activation
    assert (applied.scale, applied.steps, applied.label) == (0.5, 3, "gru")
    assert applied.cell.bias is dense.cell.bias


def test_masks_of_a_whole_model_go_into_a_state_of_its_arrays(trained):
    model, state = trained
    masks = gp.masks_from_params(model, where=WHERE)
    assert isinstance(masks.head.activation, optax.MaskedNode)
    filtered = equinox.filter(masks, equinox.is_array)
    for given in (masks, filtered, gp.get_masks(state)):
        again = gp.set_masks(state, given)
        jax.tree.map(
            np.testing.assert_array_equal, gp.get_masks(again), gp.get_masks(state)
        )
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.leaves(gp.apply_masks(model, given)),
            jax.tree.leaves(model),
        )
    assert gp.metrics(state)["sparsity/total"] == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda schedule: optax.chain(
            optax.adamw(1e-2), gp.gradual_prune(schedule, where=WHERE)
        ),
        lambda schedule: gp.with_gradual_prune(
            optax.adamw(1e-2), schedule, where=WHERE
        ),
    ],
)
def test_the_update_takes_a_whole_model(make):
    """As adamw does: what has no update, a function or a frozen array, is absent."""
    tx = make(gp.polynomial_schedule(0.5, 0, 2, every=1))
    model = Classifier()
    state = tx.init(equinox.filter(model, equinox.is_inexact_array))

    @equinox.filter_jit
    def step(model, state):
        def loss(model):
            return jnp.sum(model.head(model.cell(jnp.ones(3), jnp.ones(4))) ** 2)

        gradients = equinox.filter_grad(loss)(model)
        updates, state = tx.update(gradients, state, model)
        return equinox.apply_updates(model, updates), state

    for _ in range(4):
        model, state = step(model, state)
    gp.check_pruned(model, state)
    found = gp.sparsity(model)
    assert {name for name, value in found.items() if value == 0.5} == PRUNED
    assert len(jax.tree.leaves(gp.get_masks(state))) == len(PRUNED)


def test_integers_without_an_update_keep_the_mark_of_a_dense_leaf():
    """A model filtered by `is_array` holds integers, whose gradient is None."""
    params = {"w": jnp.ones((4, 4)), "steps": jnp.arange(3), "act": None}
    tx = gp.gradual_prune(gp.one_shot_schedule(0.5, 0))
    state = tx.init(params)
    updates, new = tx.update(
        {"w": params["w"], "steps": None, "act": None}, state, params
    )
    assert updates["steps"] is None
    chex.assert_trees_all_equal_structs(new, state)
    assert int(new.masks["w"].sum()) == 8


def test_a_rule_of_leaves_that_are_all_absent_is_no_rule_without_leaves():
    params = {"embed": {"embedding": jnp.ones((8, 4))}, "w": jnp.ones((8, 8))}
    half = gp.one_shot_schedule(0.5, 0)
    tx = gp.gradual_prune([gp.Rule(None, where="embed/.*"), gp.Rule(half)])
    updates = {"embed": {"embedding": None}, "w": jnp.ones((8, 8))}
    _, state = tx.update(updates, tx.init(params), params)
    assert int(state.masks["w"].sum()) == 32


def test_a_pruned_leaf_without_an_update_is_refused_by_name():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": jnp.ones(2)}
    for make in (gp.gradual_prune, lambda s: gp.with_gradual_prune(optax.sgd(1.0), s)):
        tx = make(gp.one_shot_schedule(0.5, 0))
        frozen = {"a": {"kernel": None}, "b": params["b"]}
        with pytest.raises(ValueError, match="'a/kernel' is pruned but its update is"):
            tx.update(frozen, tx.init(params), params)
