"""The numbers of a plan: those of the training that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)
PARAMS = {
    "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "head": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)},
}


def test_plan_reads_no_values():
    params = {"kernel": jnp.ones((4, 4)), "rng": jax.random.key(0)}
    kept = []

    def traced(params):
        kept.append(gp.plan(SCHEDULE, params).kept)
        return params

    jax.eval_shape(traced, params)
    assert kept == [gp.plan(SCHEDULE, params).kept]


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_plan_of_a_schedule_that_falls_is_that_of_its_peak(allocation):
    falling = gp.polynomial_schedule(0.5, 0, 2, every=1, initial_sparsity=0.9)
    peaked = gp.custom_schedule(lambda step: [0.2, 0.9, 0.5][int(step)], 0, 2, every=1)
    params = {"kernel": jnp.ones((10, 10))}
    schedules = [falling] if allocation == "erk" else [falling, peaked]
    for schedule in schedules:
        assert gp.plan(schedule, params, allocation=allocation).kept == (10,)


def test_plan_is_a_table_made_without_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    plan = gp.plan(SCHEDULE, shapes, total_steps=11)
    assert str(plan) == str(gp.plan(SCHEDULE, PARAMS))
    assert plan.kept == (12 + 6,)
    assert plan.mask_bytes == 24 + 12
    assert plan.update_steps == ((0, 5, 10),)
    for words in ("dense/kernel", "4x6", "50.00 %", "12", "dense", "36 bytes"):
        assert words in str(plan)


def test_plan_counts_what_training_keeps():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.normal(size=(7, 9)).astype(np.float32)},
        "b": {"kernel": rng.normal(size=(3, 5, 2)).astype(np.float32)},
    }
    for fields in (
        {},
        dict(allocation="global"),
        dict(allocation="global", min_density=0.8),
        dict(where="b/.*", stack_axis=1),
    ):
        schedule = gp.one_shot_schedule(0.37, 0)
        tx = gp.gradual_prune(schedule, **fields)
        _, state = tx.update(params, tx.init(params), params)
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(state.masks))
        plan = gp.plan(schedule, params, **fields)
        assert plan.kept == (kept,)
        assert f"keeps {kept:,} of" in str(plan)


def test_plan_refuses_a_window_that_does_not_end_within_training():
    """end_step equal to the number of steps: the last update has count N - 1."""
    gp.plan(SCHEDULE, PARAMS, total_steps=11)
    with pytest.raises(ValueError, match="end_step=10.*Set end_step to 9"):
        gp.plan(SCHEDULE, PARAMS, total_steps=10)
    with pytest.raises(ValueError, match="total_steps is 0"):
        gp.plan(SCHEDULE, PARAMS, total_steps=0)
    with pytest.raises(ValueError, match="total_steps is '10'"):
        gp.plan(SCHEDULE, PARAMS, total_steps="10")
    with pytest.raises(ValueError, match="total_steps is traced"):
        jax.jit(lambda n: gp.plan(SCHEDULE, PARAMS, total_steps=n).mask_bytes)(11)


def test_plan_refuses_parameters_without_leaves():
    with pytest.raises(ValueError, match=r"no leaves, so rule 0 \(where=is_weight\)"):
        gp.plan(SCHEDULE, {})


def test_plan_refuses_traced_schedules():
    def trace(final):
        return gp.plan(gp.one_shot_schedule(final, 0), PARAMS).mask_bytes

    with pytest.raises(ValueError, match="traced"):
        jax.jit(trace)(0.5)
