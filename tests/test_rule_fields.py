"""The fields of a rule: what they may be, and which leaves they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp
from gradprune_jax._rules import assign
from gradprune_jax._tree import named_leaves

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)
PARAMS = {"head": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)}}


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (jnp.int32, "is not a floating dtype"),
        (jnp.complex64, "is not a floating dtype"),
        (jnp.float8_e8m0fnu, "has no zero"),
        (jnp.float4_e2m1fn, "has fewer than 8 bits"),
    ],
)
def test_dtypes_that_cannot_be_pruned_are_refused(dtype, reason):
    params = {"a": {"kernel": jax.ShapeDtypeStruct((2, 2), dtype)}}
    with pytest.raises(ValueError, match=f"'a/kernel' has dtype .*{reason}"):
        gp.plan(SCHEDULE, params, where=".*")


def test_longdouble_is_refused():
    with pytest.raises(ValueError, match="'kernel' has dtype .*cannot be pruned"):
        gp.prune({"kernel": np.ones((2, 2), np.longdouble)}, 0.5)


def test_a_stack_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'head/bias' has shape .*stack axis 1"):
        gp.plan(SCHEDULE, PARAMS, where="head/bias", stack_axis=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(where="("), "no regular expression"),
        (dict(where=3), "where is 3"),
        (dict(allocation="erdos"), "allocation is 'erdos'.*'uniform', 'global', 'erk'"),
        (dict(structure="2:4"), "structure is '2:4'"),
        (dict(stack_axis=0.5), "stack_axis is 0.5"),
        (dict(stack_axis=jnp.array(0)), "static_args"),
        (dict(min_density=2.0, allocation="global"), "min_density is 2.0"),
        (dict(min_density="a", allocation="global"), "min_density is 'a'"),
        (dict(structure=gp.Unstructured), "structure is <class"),
        (dict(min_density=0.5), "floor under allocation='global'"),
        (dict(min_per_channel=-1), "min_per_channel is -1; it must be an integer"),
        (dict(min_per_channel=0.5), "min_per_channel is 0.5"),
        (dict(min_per_channel=True), "min_per_channel is True"),
        (dict(min_per_channel=1, output_axis=0.5), "output_axis is 0.5"),
        (dict(min_per_channel=1, output_axis=jnp.array(0)), "static_args"),
        (dict(output_axis=0), "output_axis is 0 with min_per_channel=0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        gp.Rule(SCHEDULE, **fields)
    with pytest.raises(ValueError, match=message):
        gp.plan(SCHEDULE, PARAMS, **fields)


@pytest.mark.parametrize("number", [np.float32, jnp.float32, float])
def test_a_floor_is_the_decimal_that_it_prints_as(number):
    rule = gp.Rule(SCHEDULE, allocation="global", min_density=number(0.1))
    assert rule.min_density == 0.1
    assert hash(rule) == hash(gp.Rule(SCHEDULE, allocation="global", min_density=0.1))


@pytest.mark.parametrize("number", [np.int64, jnp.int32, np.uint8, int])
def test_a_floor_of_channels_is_a_python_integer(number):
    axis = np.int64(0)
    rule = gp.Rule(SCHEDULE, None, stack_axis=axis, min_per_channel=number(3))
    assert type(rule.min_per_channel) is type(rule.stack_axis) is int
    rule = gp.Rule(SCHEDULE, min_per_channel=number(3), output_axis=axis)
    assert type(rule.output_axis) is int
    assert rule == gp.Rule(SCHEDULE, min_per_channel=3, output_axis=0)
    assert hash(rule) == hash(gp.Rule(SCHEDULE, min_per_channel=3, output_axis=0))


def test_a_floor_of_channels_may_be_traced():
    """inject_hyperparams makes arrays of numbers, tracers under jit."""

    def trace(least):
        rule = gp.Rule(SCHEDULE, min_per_channel=least, output_axis=0)
        assert rule.min_per_channel is least
        assign([rule], named_leaves(PARAMS))
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_per_channel=least)
        with pytest.raises(ValueError, match="min_per_channel of rule 0 is traced"):
            gp.plan(rule, PARAMS)
        with pytest.raises(ValueError, match="min_density of rule 0 is traced"):
            gp.plan(SCHEDULE, PARAMS, allocation="global", min_density=least)
        return least

    jax.eval_shape(trace, 2)


CHANNELS = {"a": {"kernel": jnp.ones((6, 8))}, "b": {"kernel": jnp.ones((3, 6, 8))}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(structure=gp.Channel()), "'a/kernel'.*drops whole output channels"),
        (dict(structure=gp.Channel(0), output_axis=0), "'a/kernel'.*drops whole"),
        (dict(structure=gp.Channel(1)), "'a/kernel'.*min_per_channel=2.*leave one"),
        (dict(structure=gp.NM(2, 4, axis=-1)), "'a/kernel'.*along the output axis 1"),
        (
            dict(structure=gp.NM(2, 3, axis=0), output_axis=0),
            "'a/kernel'.*along the output axis 0",
        ),
        (
            dict(structure=gp.NM(1, 6)),
            "'a/kernel' keeps 1 weights of each.*fewer than min_per_channel=2.*to 1",
        ),
        (
            dict(structure=gp.Block((4, 8))),
            "'a/kernel'.*cut short on axis 0.*ides 6",
        ),
        (
            dict(output_axis=2),
            "'a/kernel' has the axes .6, 8., without the output",
        ),
        (
            dict(output_axis=2, stack_axis=0, where="b/kernel"),
            "'b/kernel' has the axes .6, 8., without the output axis 2",
        ),
    ],
)
def test_structures_with_which_no_floor_of_channels_holds(fields, message):
    pattern = fields.get("structure")
    final = 1 - pattern.keep / pattern.of if isinstance(pattern, gp.NM) else 0.5
    schedule = gp.one_shot_schedule(final, 0)
    with pytest.raises(ValueError, match=message):
        gp.plan(schedule, CHANNELS, min_per_channel=2, **fields)
    with pytest.raises(ValueError, match=message):
        gp.prune(CHANNELS, schedule.final_sparsity, min_per_channel=2, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        dict(structure=gp.Unstructured()),
        dict(structure=gp.Block((3, 5))),
        dict(structure=gp.Block((4, 4)), output_axis=-2),
        dict(structure=gp.Channel(-2)),
        dict(structure=gp.Channel(), output_axis=0),
        dict(structure=gp.NM(1, 2)),
        dict(structure=gp.NM(2, 4, axis=-1), output_axis=0),
        dict(allocation="global"),
        dict(allocation="erk"),
    ],
)
def test_structures_with_which_a_floor_of_channels_holds(fields):
    assert gp.plan(SCHEDULE, CHANNELS, min_per_channel=2, **fields).pruned
    empty = {"kernel": jnp.ones((0, 8))}
    assert gp.plan(SCHEDULE, empty, min_per_channel=2, **fields).pruned


def test_what_is_no_schedule_is_refused():
    for wrong in (0.9, None, optax.constant_schedule(0.9), "cubic"):
        with pytest.raises(TypeError, match="must be a SparsitySchedule"):
            gp.gradual_prune(wrong)
    with pytest.raises(TypeError, match="rule 1 of the list"):
        gp.gradual_prune([gp.Rule(SCHEDULE), SCHEDULE])
    with pytest.raises(ValueError, match="empty"):
        gp.gradual_prune([])


def test_rules_come_without_fields_beside_them():
    with pytest.raises(ValueError, match="write it in the rules"):
        gp.gradual_prune([gp.Rule(SCHEDULE)], where="head/.*")
    with pytest.raises(ValueError, match="write it in the rules"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_density=0.1)
    with pytest.raises(ValueError, match="min_per_channel is 1 beside a list"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_per_channel=1)
    with pytest.raises(ValueError, match="output_axis is 0 beside a list"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, output_axis=0)
