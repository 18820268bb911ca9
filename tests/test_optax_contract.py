"""What optax asks of every contributed optimizer, asked of a chain with pruning.

The same checks as in optax's own common tests for `optax.contrib`: extra arguments, no
recompilation, stable under `lax.cond`, dtypes, MultiSteps, inject_hyperparams,
map_params.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp
from tests.helpers import enable_x64

SCHEDULE = gp.polynomial_schedule(0.5, begin_step=1, end_step=5, every=2)

FACTORIES = {
    "chain": lambda: optax.chain(
        optax.sgd(1e-2), gp.gradual_prune(SCHEDULE, where=".*")
    ),
    "chain, global": lambda: optax.chain(
        optax.sgd(1e-2), gp.gradual_prune(SCHEDULE, where=".*", allocation="global")
    ),
    "wrapper": lambda: gp.with_gradual_prune(optax.sgd(1e-2), SCHEDULE, where=".*"),
}

TARGETS = {
    "vector": (jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0])),
    "matrix": (jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]])),
    "mixed": (
        (jnp.zeros(3), jnp.zeros((2, 2))),
        (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])),
    ),
}

factories = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)


def loss_of(params, target):
    return sum(
        jnp.sum((p - t.astype(p.dtype)) ** 2)
        for p, t in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
    )


@factories
def test_accepts_extra_args_and_does_not_recompile(make):
    tx = make()
    params, target = TARGETS["matrix"]
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        value, gradients = jax.value_and_grad(loss_of)(params, target)
        updates, state = tx.update(
            gradients, state, params, value=value, unexpected_argument=1
        )
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(10):
        params, state = step(params, state)
    assert len(traces) == step._cache_size() == 1


@factories
@pytest.mark.parametrize("target", TARGETS)
def test_optimizes_the_live_weights_within_a_scan_and_maps_params(make, target):
    tx = make()
    params, wanted = TARGETS[target]
    state = optax.tree.map_params(tx, lambda leaf: leaf, tx.init(params))

    def body(carry, _):
        params, state = carry
        gradients = jax.grad(loss_of)(params, wanted)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.jit(lambda carry: jax.lax.scan(body, carry, length=2_000))(
        (params, state)
    )
    masked = gp.apply_masks(wanted, gp.get_masks(state))
    for leaf, goal in zip(
        jax.tree.leaves(params), jax.tree.leaves(masked), strict=True
    ):
        np.testing.assert_allclose(leaf, goal, rtol=3e-2, atol=3e-2)
    gp.check_pruned(params, state)


def test_can_be_wrapped_in_inject_hyperparams():
    """inject_hyperparams takes any callable argument for a schedule."""
    params = {"kernel": -jnp.ones((2, 3)), "w": jnp.ones((2, 5, 2))}
    gradients = jax.tree.map(jnp.negative, params)
    plain = gp.gradual_prune(SCHEDULE)
    injected = optax.inject_hyperparams(gp.gradual_prune)(SCHEDULE)
    state, state_injected = jax.jit(plain.init)(params), jax.jit(injected.init)(params)
    for _ in range(3):
        one, state = jax.jit(plain.update)(gradients, state, params)
        other, state_injected = jax.jit(injected.update)(
            gradients, state_injected, params
        )
        chex.assert_trees_all_equal(one, other)
    chex.assert_trees_all_equal(state_injected.inner_state, state)
    assert gp.get_masks(state_injected)["kernel"].dtype == bool


def test_inject_hyperparams_with_static_fields_and_a_learning_rate():
    """0.9 becomes 0.8984 when it is cast to bfloat16, ints become arrays."""
    params = {"kernel": jnp.arange(1.0, 201.0, dtype=jnp.bfloat16).reshape(2, 100)}
    schedule = gp.one_shot_schedule(0.9, 0)

    def make(learning_rate):
        return optax.chain(optax.sgd(learning_rate), gp.gradual_prune(schedule))

    fields = optax.inject_hyperparams(
        gp.gradual_prune, static_args=("where", "stack_axis")
    )(schedule, where=gp.is_weight, stack_axis=0)
    for tx in (optax.inject_hyperparams(make)(learning_rate=0.1), fields):
        _, state = jax.jit(tx.update)(params, tx.init(params), params)
        assert int(gp.get_masks(state)["kernel"].sum()) == 20
    with pytest.raises(ValueError, match="static_args='where'"):
        bad = optax.inject_hyperparams(gp.gradual_prune)
        bad(schedule, where=lambda path, leaf=None: 0.5).init(params)


def test_injected_min_density_of_a_list_of_rules():
    rules = [gp.Rule(SCHEDULE)]
    params = {"kernel": jnp.ones((4, 4))}
    tx = optax.inject_hyperparams(gp.gradual_prune)(rules)
    jax.jit(tx.update)(params, tx.init(params), params)


@factories
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_preserves_dtype_and_accumulates_gradients(make, dtype):
    params = jnp.array([1.0, 2.0], dtype)
    gradients = jax.grad(lambda x: jnp.sum(x**2))(params)
    tx = make()
    updates, _ = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
    assert updates.dtype == params.dtype
    accumulating = optax.MultiSteps(make(), every_k_schedule=4)
    state = jax.jit(accumulating.init)(params)
    updates, _ = jax.jit(accumulating.update)(gradients, state, params)
    np.testing.assert_array_equal(updates, jnp.zeros_like(gradients))


@factories
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_state_is_stable_in_shape_and_dtype_under_cond(make, dtype):
    with enable_x64() if dtype == "float64" else jax.default_device(None):
        tx = make()
        params = jnp.array([-1.0, 10.0, 1.0], dtype)

        @jax.jit
        def step(params, state, taken):
            gradients = jax.grad(lambda x: jnp.sum(x**2))(params)
            updates, state = jax.lax.cond(
                taken,
                lambda: tx.update(gradients, state, params),
                lambda: (params, state),
            )
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for taken in (True, False, True):
            params, new = step(params, state, taken)
            assert params.dtype == dtype
            assert jax.tree.map(jnp.result_type, new) == jax.tree.map(
                jnp.result_type, state
            )
            state = new


@factories
def test_init_and_update_are_abstract_and_agree(make):
    tx = make()
    params, _ = TARGETS["mixed"]
    shapes = jax.eval_shape(tx.init, params)
    concrete = tx.init(params)
    chex.assert_trees_all_equal_structs(shapes, concrete)
    after = jax.eval_shape(tx.update, params, shapes, params)[1]
    same = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert same(after) == same(shapes) == same(concrete)
