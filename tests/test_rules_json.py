"""Rules in a file, and back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradprune_jax as gp

structures = st.one_of(
    st.none(),
    st.just(gp.Unstructured()),
    st.builds(lambda n, more: gp.NM(n, n + more), st.integers(1, 9), st.integers(1, 9)),
    st.builds(
        gp.Block,
        st.lists(st.integers(1, 64), min_size=1, max_size=3).map(tuple),
        st.sampled_from(["mean", "max"]),
    ),
    st.builds(gp.Channel, st.sampled_from([-1, -2, 0])),
)
schedules = st.builds(
    gp.polynomial_schedule,
    st.floats(0.01, 1),
    st.integers(0, 99),
    st.integers(99, 10**6),
    every=st.integers(1, 1000),
    initial_sparsity=st.floats(0, 0.01),
    power=st.sampled_from([1, 3, 2.5]),
)


@st.composite
def rules(draw):
    structure = draw(structures)
    is_pattern = isinstance(structure, gp.NM)
    allocation = "uniform"
    if not is_pattern:
        allocation = draw(st.sampled_from(["uniform", "global", "erk"]))
    schedule = draw(st.one_of(st.none(), schedules))
    if is_pattern and schedule is not None:
        final = 1 - structure.keep / structure.of
        schedule = dataclasses.replace(schedule, final_sparsity=final)
    return gp.Rule(
        schedule,
        where=draw(st.sampled_from([None, "head/.*", r".*\"odd\"\\.*"])),
        structure=structure,
        allocation=allocation,
        stack_axis=draw(st.sampled_from([None, 0, -1])),
        min_density=draw(st.floats(0, 1)) if allocation == "global" else 0.0,
    )


@given(st.lists(rules(), min_size=1, max_size=4))
def test_rules_survive_a_round_trip(written):
    text = gp.rules_to_json(written)
    assert gp.rules_from_json(text) == written
    assert gp.rules_to_json(gp.rules_from_json(text)) == text


def test_a_schedule_or_a_rule_is_written_as_a_list():
    schedule = gp.one_shot_schedule(0.5, 3)
    for alone in (schedule, gp.Rule(schedule), [gp.Rule(schedule, where=gp.is_weight)]):
        assert gp.rules_from_json(gp.rules_to_json(alone)) == [gp.Rule(schedule)]


def test_every_field_of_a_rule_is_written():
    rule = gp.Rule(
        gp.one_shot_schedule(0.5, 3),
        where="a",
        structure=gp.Block((2, 2)),
        stack_axis=0,
        min_per_channel=2,
        output_axis=0,
    )
    assert gp.rules_from_json(gp.rules_to_json(rule)) == [rule]
    written = json.loads(gp.rules_to_json(rule))["rules"][0]
    assert set(written) == {field.name for field in dataclasses.fields(gp.Rule)}


def test_numbers_of_numpy_and_jax_are_written():
    rule = gp.Rule(
        gp.one_shot_schedule(jnp.float32(0.5), 3),
        allocation="global",
        min_density=jnp.float32(0.25),
    )
    assert gp.rules_from_json(gp.rules_to_json(rule))[0].min_density == 0.25


SCHEDULE = gp.one_shot_schedule(0.5, 3)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (gp.Rule(SCHEDULE, where=lambda *_: True), "where of rule 0 is a callable"),
        (
            gp.Rule(gp.custom_schedule(optax.linear_schedule(0, 0.5, 9), 0, 9)),
            "rule 0 is a custom_schedule",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        gp.rules_to_json(rule)


def test_a_tracer_is_refused():
    def trace(final):
        return gp.rules_to_json(gp.one_shot_schedule(final, 0))

    with pytest.raises(ValueError, match="final_sparsity of rule 0 is traced"):
        jax.jit(trace)(0.5)


def changed(**fields):
    document = json.loads(gp.rules_to_json([gp.Rule(SCHEDULE, structure=gp.NM())]))
    document["rules"][0] |= fields
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the rules are no JSON"),
        ("[]", "the document is .*must be a JSON object"),
        ("{}", r"the document lacks \['rules'\]"),
        ('{"rules": 3}', "rules is 3; it must be a list"),
        ('{"rules": [3]}', "rule 0 is 3"),
        (changed(sparsity=0.5), r"rule 0 has unknown fields \['sparsity'\]"),
        (changed(schedule={"begin_step": 3}), "rule 0: its schedule lacks"),
        (changed(allocation="best"), "rule 0: allocation is 'best'"),
        (changed(structure={"type": "Odd"}), "rule 0: the type of .* 'Odd'"),
        (changed(structure="NM"), "rule 0: its structure is 'NM'"),
        (changed(structure={"type": "NM", "keep": 9}), "rule 0: keep is 9"),
        (changed(structure=[]), r"rule 0: the type of its structure is \[\]; it must"),
        (
            changed(structure={"type": {}}),
            r"the type of its structure is \{\}; it must",
        ),
        (changed(min_density=10**400), "rule 0: a number in it is too large"),
        ("[" * 10**5, "the rules are nested too deeply"),
        ("9" * 5000, r"^a number in the rules has more digits than .*\.$"),
        (None, "^the rules are None; they must be JSON text"),
        (b"\xff", r"^the rules are no JSON text: not UTF-8\.$"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        gp.rules_from_json(text)
