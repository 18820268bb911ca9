"""Groups that do not fit the rule or the parameters are refused by name."""

import jax.numpy as jnp
import pytest

import gradprune_jax as gp
from tests.coupled import dense_groups, dense_params


def test_a_member_that_is_left_out_is_an_error_that_names_it():
    params, groups = dense_params(), dense_groups()
    structure = gp.CoupledChannels(groups)
    with pytest.raises(ValueError, match=r"leaves out 'b1'.*groups.select"):
        gp.prune(params, 0.5, structure=structure, where="w.")
    rules = [
        gp.Rule(None, where="b1"),
        gp.Rule(gp.one_shot_schedule(0.5, 0), structure=structure),
    ]
    with pytest.raises(ValueError, match=r"leaves out 'b1'"):
        gp.gradual_prune(rules).init(params)
    with pytest.raises(ValueError, match=r"leaves out 'b1'"):
        gp.plan(rules, params)
    without = {name: leaf for name, leaf in params.items() if name != "b1"}
    with pytest.raises(ValueError, match=r"leaves out 'b1'"):
        gp.prune(without, 0.5, structure=structure)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allocation": "erk"}, "allocation is 'erk'"),
        ({"stack_axis": 0}, "stack_axis is 0"),
        ({"min_per_channel": 1}, "min_per_channel is 1"),
    ],
)
def test_fields_without_meaning_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        gp.Rule(
            gp.one_shot_schedule(0.5, 0),
            structure=gp.CoupledChannels(dense_groups()),
            **fields,
        )


def test_what_is_no_group_or_not_free_is_refused():
    with pytest.raises(ValueError, match="channel_groups"):
        gp.CoupledChannels("w1")
    with pytest.raises(ValueError, match="round_to is 0"):
        gp.CoupledChannels(dense_groups(), round_to=0)
    with pytest.raises(ValueError, match="pool is 'sum'"):
        gp.CoupledChannels(dense_groups(), pool="sum")
    fixed = gp.channel_groups(
        lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones(2)
    )
    with pytest.raises(ValueError, match="none of the groups can be cut"):
        gp.CoupledChannels(fixed)


def test_parameters_of_another_tree_or_shape_are_refused():
    structure = gp.CoupledChannels(dense_groups())
    with pytest.raises(ValueError, match=r"'params/w1'.*Call channel_groups"):
        gp.prune({"params": dense_params()}, 0.5, structure=structure)
    with pytest.raises(ValueError, match="where='zz'.*its where selects none"):
        gp.prune(dense_params(), 0.5, structure=structure, where="zz")
    with pytest.raises(ValueError, match=r"'b1' has shape \(7,\)"):
        gp.prune(dense_params(widths=(4, 7, 10, 3)), 0.5, structure=structure)
    with pytest.raises(ValueError, match="sensitivity prunes each alone"):
        gp.sensitivity(lambda p: 0.0, dense_params(), [0.5], structure=structure)
    rule = gp.Rule(gp.one_shot_schedule(0.5, 0), structure=structure)
    with pytest.raises(ValueError, match="JSON cannot hold"):
        gp.rules_to_json(rule)
