"""What the compiled step does: one trace, no copy of the masks, no host."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp
from gradprune_jax._mask_update import step as mask_step

SCHEDULE = gp.polynomial_schedule(0.9, 0, 40, every=4)
PARAMS = {"a": {"kernel": jnp.ones((64, 32))}, "b": {"kernel": jnp.ones((32, 48))}}


def make_step(tx, traces=None):
    def step(params, state, gradients):
        if traces is not None:
            traces.append(None)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def test_traces_once_in_a_run_of_any_length():
    traces, seen = [], []

    def where(path, leaf):
        seen.append(path)
        return path[-1] == "kernel"

    tx = optax.chain(optax.adam(1e-3), gp.gradual_prune(SCHEDULE, where=where))
    params = jax.tree.map(jnp.copy, PARAMS)
    state = tx.init(params)
    step = make_step(tx, traces)
    seen.clear()
    for _ in range(60):
        params, state = step(params, state, PARAMS)
    assert len(traces) == step._cache_size() == 1
    assert len(seen) == 2  # the rules too are asked once for each leaf


def test_outside_jit_a_mask_update_is_compiled_once(monkeypatch):
    """A conditional was compiled at every call, for half a second a step."""
    traces = []
    update_masks = mask_step.update_masks
    monkeypatch.setattr(
        mask_step,
        "update_masks",
        lambda *arguments: (traces.append(None), update_masks(*arguments))[1],
    )
    tx = gp.gradual_prune(gp.polynomial_schedule(0.63, 0, 2, every=1))
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert len(traces) == 1


def test_a_factory_that_is_called_at_every_step_compiles_nothing_anew(caplog):
    """`inject_hyperparams` calls it so; a step of it compiled for half a second."""
    schedule = gp.polynomial_schedule(0.64, 0, 2, every=1)
    tx = optax.inject_hyperparams(gp.gradual_prune)(schedule)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        _, state = tx.update(PARAMS, state, PARAMS)
        assert not caplog.records
        other = gp.gradual_prune(gp.polynomial_schedule(0.65, 0, 2, every=1))
        other.update(PARAMS, state.inner_state, PARAMS)
        assert caplog.records  # so what is compiled is logged


def test_functions_of_equal_values_are_one_schedule(caplog):
    """A factory makes a new function at every call."""

    def update(state):
        fn = optax.linear_schedule(0.0, 0.66, transition_steps=4)
        schedule = gp.custom_schedule(fn, 0, 4, every=2)
        return gp.gradual_prune(schedule).update(PARAMS, state, PARAMS)[1]

    state = gp.gradual_prune(SCHEDULE).init(PARAMS)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for compiles in (True, False):
            state = update(state)
            assert ("_update_if_due" in caplog.text) == compiles
            caplog.clear()


def test_donated_masks_are_updated_in_place_and_not_copied_between_updates():
    tx = optax.chain(optax.adam(1e-3), gp.gradual_prune(SCHEDULE))
    state = tx.init(PARAMS)
    compiled = make_step(tx).lower(PARAMS, state, PARAMS).compile()
    memory = compiled.memory_analysis()
    outputs = jax.tree.leaves((PARAMS, state))
    donated = sum(leaf.size * leaf.dtype.itemsize for leaf in outputs)
    assert memory.alias_size_in_bytes == donated
    # Outside the conditional, which runs at mask updates alone, nothing of a mask's
    # shape is made but the select's operand.
    entry = compiled.as_text().split("ENTRY")[1]
    made = re.findall(r"= pred\[(?:64,32|32,48)\]\S* (\S+?)\(", entry)
    assert made.count("parameter") == 2  # the pattern finds the two masks
    assert set(made) <= {"parameter", "get-tuple-element", "bitcast"}


def test_a_donated_run_gives_the_same_masks_as_one_that_is_not():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32), PARAMS
    )
    tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(SCHEDULE))
    runs = []
    for step in (make_step(tx), jax.jit(make_step(tx).__wrapped__)):
        run = jax.tree.map(jnp.asarray, params)
        state = tx.init(run)
        for _ in range(5):
            run, state = step(run, state, jax.tree.map(jnp.asarray, params))
        runs.append((run, state))
    jax.tree.map(
        np.testing.assert_array_equal,
        gp.get_masks(runs[0][1]),
        gp.get_masks(runs[1][1]),
    )


def test_the_step_has_no_host_callback_and_no_sort():
    words = ("callback", "stablehlo.sort", 'gather"(')

    def has_all(x):
        jax.debug.callback(lambda value: None, x)
        return jnp.sort(x)[x.astype(int)]

    tx = gp.gradual_prune(SCHEDULE, allocation="global", min_density=0.1)
    program = jax.jit(tx.update).lower(PARAMS, tx.init(PARAMS), PARAMS).as_text()
    control = jax.jit(has_all).lower(jnp.ones(4)).as_text()
    for word in words:
        assert word in control
        assert word not in program


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_mask_update_needs_little_memory_and_concatenates_no_weights(allocation):
    """Global pruning concatenates every weight in others."""
    shapes = {"a": (512, 384), "b": (256, 1024)}
    params = {
        name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for name, shape in shapes.items()
    }
    tx = gp.gradual_prune(SCHEDULE, allocation=allocation)
    state = jax.eval_shape(tx.init, params)
    update = jax.jit(lambda state, params: tx.update(params, state, params)[1])
    compiled = update.lower(state, params).compile()
    weights = sum(np.prod(shape) for shape in shapes.values())
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * weights


@pytest.mark.parametrize("counts", ["one count", "a count for each run"])
def test_mask_update_is_inside_a_loop_of_one_round_or_none(counts):
    """Outside of it nothing is reduced: between mask updates no weight is counted."""
    tx = gp.gradual_prune(SCHEDULE)
    state, update = tx.init(PARAMS), tx.update
    if counts == "a count for each run":
        # Of a conditional this would make a select, and each step would search.
        state = state._replace(count=jnp.arange(3, dtype=jnp.int32))
        axes = gp.GradualPruneState(0, None)
        update = jax.vmap(update, in_axes=(None, axes, None))
    jaxpr = jax.make_jaxpr(update)(PARAMS, state, PARAMS).jaxpr
    outside, inside = [], []

    def collect(jaxpr, found):
        for equation in jaxpr.eqns:
            found.append(equation.primitive.name)
            into = inside if equation.primitive.name == "while" else found
            for value in jax.tree.leaves(list(equation.params.values())):
                if hasattr(value, "jaxpr"):
                    collect(value.jaxpr, into)

    collect(jaxpr, outside)
    assert {"reduce_sum", "while"} <= {*inside}
    assert outside.count("while") == 1
    assert not {"cond", "reduce_sum", "reduce_max"} & {*outside}
