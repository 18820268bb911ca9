"""Which parameters a rule prunes: the first that matches, by the whole path."""

import jax
import jax.numpy as jnp
import optax
import pytest

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)
PARAMS = {
    "encoder": {
        "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
        "norm": {"scale": jnp.ones(6)},
    },
    "head": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)},
    "steps": jnp.zeros((2, 2), jnp.int32),
}


def pruned(rules, params=PARAMS, **fields):
    return [leaf.path for leaf in gp.plan(rules, params, **fields).pruned]


def masked(rules, params=PARAMS, **fields):
    masks = gp.gradual_prune(rules, **fields).init(params).masks
    return [
        leaf.path
        for leaf, mask in zip(
            gp.plan(rules, params, **fields).leaves,
            jax.tree.leaves(masks, is_leaf=lambda m: isinstance(m, optax.MaskedNode)),
            strict=True,
        )
        if not isinstance(mask, optax.MaskedNode)
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ["encoder/dense/kernel", "head/kernel"]),
        ("head/.*", ["head/bias", "head/kernel"]),
        (".*kernel", ["encoder/dense/kernel", "head/kernel"]),
        ("head/kernel", ["head/kernel"]),
        (lambda path, leaf: path[0] == "head" and len(leaf.shape) == 1, ["head/bias"]),
        (gp.is_weight, ["encoder/dense/kernel", "head/kernel"]),
    ],
)
def test_where(where, expected):
    assert pruned(SCHEDULE, where=where) == expected
    assert masked(SCHEDULE, where=where) == expected


def test_a_regex_matches_the_whole_path():
    with pytest.raises(ValueError, match="matches no parameter"):
        pruned(SCHEDULE, where="head")


def test_first_match_wins_and_none_stays_dense():
    later = gp.one_shot_schedule(0.9, 3)
    rules = [
        gp.Rule(None, where="head/.*"),
        gp.Rule(later, where=".*/kernel"),
        gp.Rule(SCHEDULE, where=".*/(scale|kernel)"),
    ]
    plan = gp.plan(rules, PARAMS)
    assert {leaf.path: leaf.rule for leaf in plan.leaves} == {
        "encoder/dense/kernel": 1,
        "encoder/dense/bias": None,
        "encoder/norm/scale": 2,
        "head/kernel": None,
        "head/bias": None,
        "steps": None,
    }


def test_a_rule_that_matches_nothing_is_an_error_with_the_closest_paths():
    for attempt in (
        lambda: gp.plan(SCHEDULE, PARAMS, where="hed/kernel"),
        lambda: gp.gradual_prune(SCHEDULE, where="hed/kernel").init(PARAMS),
        lambda: jax.eval_shape(
            gp.gradual_prune(SCHEDULE, where="hed/kernel").init, PARAMS
        ),
    ):
        with pytest.raises(ValueError, match="hed/kernel.*closest.*'head/kernel'"):
            attempt()
    with pytest.raises(ValueError, match="where=is_weight.*matches no parameter"):
        gp.plan(SCHEDULE, {"bias": jnp.ones(3)})


def test_a_rule_whose_leaves_are_all_taken_prunes_nothing_and_plan_says_so():
    rules = [gp.Rule(SCHEDULE), gp.Rule(SCHEDULE, where="head/kernel")]
    plan = gp.plan(rules, PARAMS)
    assert plan.kept == (18, 0)
    assert "rule 1 (where='head/kernel'): prunes nothing" in str(plan)


def test_callables_read_shape_and_dtype_alone():
    """masked and partition call user functions on updates later: no values there."""
    seen = []

    def where(path, leaf):
        seen.append(leaf)
        assert isinstance(path, tuple)
        return path[-1] == "kernel"

    tx = gp.gradual_prune(SCHEDULE, where=where)
    jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in seen)


def test_a_callable_that_matches_nothing_is_not_told_of_regular_expressions():
    def where(path, leaf):
        return False

    with pytest.raises(ValueError, match="matches no parameter") as error:
        gp.plan(SCHEDULE, PARAMS, where=where)
    assert "was never true" in str(error.value)
    assert "'head/kernel'" in str(error.value)
    assert "regular expression" not in str(error.value)
    with pytest.raises(ValueError, match="the whole path") as error:
        gp.plan(SCHEDULE, PARAMS, where="nothing")
    assert "By default" not in str(error.value)


def test_every_name_that_is_printed_selects_its_leaf():
    """Two leaves may print alike, and names may have special characters."""
    params = {
        "a": {"0": jnp.ones((2, 2)), "b(1)/kernel": jnp.ones((2, 2))},
        "a/0": jnp.ones((2, 2)),
        "c/d": jnp.ones((2, 2)),
    }
    plan = gp.plan(SCHEDULE, params, where=".*")
    assert len(plan.pruned) == 4
    for leaf in plan.leaves:
        assert pruned(SCHEDULE, params, where=leaf.path) == [leaf.path]
        assert masked(SCHEDULE, params, where=leaf.path) == [leaf.path]
    assert len(pruned(SCHEDULE, params, where="a/0")) == 2
