"""A conditional update that is a loop of one round or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradprune_jax._in_place import update_if


def add(carried, inputs):
    return {"sum": carried["sum"] + inputs}


@pytest.mark.parametrize("is_due", [True, False])
@pytest.mark.parametrize("compiled", [jax.jit, lambda function: function])
def test_it_updates_once_or_not_at_all(is_due, compiled):
    @compiled
    def run(is_due, carried, inputs):
        return update_if(is_due, add, carried, inputs)

    found = run(jnp.bool_(is_due), {"sum": jnp.ones(3)}, jnp.arange(3.0))
    np.testing.assert_array_equal(found["sum"], [1, 2, 3] if is_due else [1, 1, 1])


def test_it_is_vectorised():
    run = jax.vmap(lambda *each: update_if(each[0], add, {"sum": each[1]}, each[2]))
    found = run(jnp.array([True, False]), jnp.ones(2), jnp.full(2, 5.0))
    np.testing.assert_array_equal(found["sum"], [6, 1])


def test_nothing_of_the_update_is_computed_where_it_is_not_due():
    """What depends on the inputs alone is not taken out of the loop."""

    def products(carried, inputs):
        return carried + jnp.tanh(inputs @ inputs)

    compiled = jax.jit(lambda *each: update_if(each[0], products, *each[1:]))
    program = compiled.lower(jnp.bool_(True), *[jnp.ones((64, 64))] * 2).compile()
    _, entry = program.as_text().split("\nENTRY ")
    for operation in ("dot(", "fusion(", "call(", "tanh"):
        assert operation not in entry
    assert "while(" in entry


def test_gradients_pass_by_what_is_not_differentiable():
    def loss(weights):
        masks = update_if(
            jnp.bool_(True),
            lambda masks, weights: masks & (weights > 1),
            jnp.ones(3, bool),
            weights,
        )
        return jnp.sum(jnp.where(masks, weights, 0) ** 2)

    gradient = jax.jit(jax.grad(loss))(jnp.array([0.5, 2.0, 3.0]))
    np.testing.assert_array_equal(gradient, [0, 4, 6])
