"""Scores: weights ranked by what a user chooses, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradprune_jax as gp
from gradprune_jax._top_k.keys import largest_ranking_key, score_keys
from tests import oracle
from tests.scoring import SCHEDULE, make_tree, numpy_scores, top_k


def own_score(param, gradient):
    return param - 2 * gradient


@pytest.mark.parametrize(
    "score",
    [gp.Saliency(), gp.Fisher(0.75), gp.Movement(), own_score],
    ids=["saliency", "fisher", "movement", "own"],
)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_run_is_that_of_numpy(score, dtype):
    tx = gp.with_gradual_prune(optax.sgd(0.125), SCHEDULE, score=score)
    params = make_tree(0, dtype)
    state = jax.jit(tx.init)(params)
    step = jax.jit(tx.update)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    states = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    for count in range(7):
        gradients = make_tree(count + 1, dtype)
        for layer in params:
            weights = np.asarray(params[layer]["kernel"])
            states[layer]["kernel"], scores = numpy_scores(
                score, weights, gradients[layer]["kernel"], states[layer]["kernel"]
            )
            if count in (1, 3, 5):
                sparsity = float(SCHEDULE.sparsity(count))
                kept = oracle.kept_count(weights.size, sparsity)
                old = masks[layer]["kernel"]
                masks[layer]["kernel"] = old & top_k(scores, old, kept)
        updates, state = step(gradients, state, params)
        params = optax.apply_updates(params, updates)
        found = jax.tree.map(np.asarray, gp.get_masks(state))
        jax.tree.map(np.testing.assert_array_equal, found, masks)
        gp.check_pruned(params, state)
    if hasattr(state, "scores"):
        jax.tree.map(np.testing.assert_array_equal, state.scores, states)
    assert hasattr(state, "scores") == isinstance(score, gp.Fisher | gp.Movement)


def test_magnitude_is_the_program_without_a_score():
    params = make_tree(0)

    def program(make, **fields):
        tx = make(SCHEDULE, **fields)
        return jax.jit(tx.update).lower(params, tx.init(params), params).as_text()

    wrapped = functools.partial(gp.with_gradual_prune, optax.adam(1e-3))
    for make in (gp.gradual_prune, wrapped):
        assert program(make) == program(make, score=gp.Magnitude())
        assert program(make) != program(make, score=gp.Random(0))
    assert gp.Rule(SCHEDULE, score=gp.Magnitude()) == gp.Rule(SCHEDULE)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(width=16, allow_subnormal=True), min_size=2, max_size=20),
    st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_keys_sort_as_scores_do(numbers, dtype):
    scores = np.array(numbers).astype(jnp.dtype(dtype))
    live = np.ones(scores.shape, bool)
    keys = np.asarray(score_keys(jnp.asarray(scores), live, dtype)).astype(np.int64)
    wide = scores.astype(np.float64)
    for a, one in zip(wide, keys, strict=True):
        for b, other in zip(wide, keys, strict=True):
            assert (one > other) == bool(a > b or (np.isnan(a) and not np.isnan(b)))
    assert keys.min() > 0
    assert keys.max() <= largest_ranking_key(dtype, signed=True)
    assert not np.asarray(score_keys(jnp.asarray(scores), ~live, dtype)).any()


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_weights_and_scores_of_eight_bits(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), make_tree(0))
    gradients = jax.tree.map(lambda leaf: leaf.astype(dtype), make_tree(1))
    for score in (gp.Saliency(), gp.Fisher(0.5), gp.Movement(), lambda p, g: -g):
        _, masks = gp.prune(params, 0.5, score=score, gradients=gradients)
        weights, gradient = (
            tree["first"]["kernel"].astype(np.float32) for tree in (params, gradients)
        )
        state = np.zeros_like(weights)
        _, scores = numpy_scores(score, weights, gradient, state)
        if not isinstance(score, gp.Score):
            scores = -gradient
        expected = top_k(scores, np.ones(scores.shape, bool), scores.size // 2)
        np.testing.assert_array_equal(masks["first"]["kernel"], expected)


def test_random_masks_are_uniform_and_nested():
    params = {"a": {"kernel": np.ones((64, 64))}, "b": {"kernel": np.ones((64, 64))}}
    masks = [
        gp.prune(params, sparsity, score=gp.Random(seed))[1]
        for sparsity, seed in [(0.5, 0), (0.9, 0), (0.5, 1)]
    ]
    half, tenth, other = ({n: np.asarray(m[n]["kernel"]) for n in "ab"} for m in masks)
    assert not (tenth["a"] & ~half["a"]).any()
    for one, two in [(half["a"], half["b"]), (half["a"], other["a"])]:
        assert 0.45 < (one == two).mean() < 0.55
    rows = half["a"].sum(0)
    assert 16 < rows.min() < rows.max() < 48


def test_state_is_carried_by_the_tools_of_optax():
    params = make_tree(0)
    tx = gp.with_gradual_prune(optax.adam(1e-3), SCHEDULE, score=gp.Movement())
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda leaf: leaf + 2, state)
    for leaf in jax.tree.leaves((doubled.scores, doubled.inner_state[0].mu)):
        assert (np.asarray(leaf) == 2).all()
    chained = optax.MultiSteps(tx, every_k_schedule=2)
    state = chained.init(params)
    gradients = make_tree(1)
    for _ in range(8):
        updates, state = jax.jit(chained.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert int(state.inner_opt_state.prune_state.count) == 4
    assert gp.metrics(state)["sparsity/total"] > 0


def test_a_step_is_traced_once():
    traces = []

    def score(param, gradient):
        traces.append(param.shape)
        return param * gradient

    tx = gp.with_gradual_prune(optax.sgd(0.1), SCHEDULE, score=score)
    params = make_tree(0)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for count in range(6):
        _, state = step(make_tree(count), state, params)
    assert len(traces) == 2


def test_wrong_scores_are_refused():
    params, gradients = make_tree(0), make_tree(1)
    for score in (gp.Saliency(), gp.Fisher(0.9), gp.Movement(), own_score):
        with pytest.raises(ValueError, match="with_gradual_prune"):
            gp.gradual_prune(SCHEDULE, score=score)
        with pytest.raises(ValueError, match="give them: gradients="):
            gp.prune(params, 0.5, score=score)
    for score in ("magnitude", gp.Saliency, 3):
        with pytest.raises(ValueError, match="it must be Magnitude"):
            gp.Rule(SCHEDULE, score=score)
    with pytest.raises(ValueError, match="reads no gradients"):
        gp.prune(params, 0.5, gradients=gradients)
    with pytest.raises(ValueError, match="do not fit the parameters at 'first/kernel'"):
        gp.prune(params, 0.5, score=gp.Saliency(), gradients={"first": gradients})
    with pytest.raises(ValueError, match="the parameter's shape, \\[8, 16\\]"):
        gp.prune(params, 0.5, score=lambda p, g: g.sum(), gradients=gradients)
    with pytest.raises(ValueError, match="decay is 1.5"):
        gp.Fisher(1.5)
    with pytest.raises(ValueError, match="it must be below 1"):
        gp.Fisher(1.0)
    with pytest.raises(ValueError, match="seed is -1"):
        gp.Random(-1)
    with pytest.raises(ValueError, match="score is Random"):
        gp.gradual_prune([gp.Rule(SCHEDULE)], score=gp.Random(0))


def test_numbers_of_numpy_and_jax_are_taken_as_pythons():
    """A score is a static argument, which JAX's arrays cannot be."""
    params, gradients = make_tree(0), make_tree(1)
    assert gp.Random(jnp.int32(3)) == gp.Random(np.int64(3)) == gp.Random(3)
    assert gp.Fisher(jnp.float32(0.5)) == gp.Fisher(np.float64(0.5)) == gp.Fisher(0.5)
    tx = gp.with_gradual_prune(
        optax.sgd(0.1), SCHEDULE, score=gp.Fisher(jnp.float32(0.5))
    )
    jax.jit(tx.update)(gradients, tx.init(params), params)
    gp.prune(params, 0.5, score=gp.Random(jnp.int32(3)))


@pytest.mark.parametrize(("name", "make"), [("seed", gp.Random), ("decay", gp.Fisher)])
def test_traced_numbers_are_refused(name, make):
    with pytest.raises(ValueError, match=f"{name} is traced.*static_args='{name}'"):
        jax.jit(lambda number: make(number).scores)(0)


def test_a_state_of_other_scores_is_refused():
    params, gradients = make_tree(0), make_tree(1)
    tx = gp.with_gradual_prune(optax.sgd(0.1), SCHEDULE, score=gp.Movement())
    state = tx.init(params)
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.scores)
    missing = jax.tree.map(lambda _: optax.MaskedNode(), state.scores)
    for scores, message in [
        (halves, r"are bfloat16\[8, 16\]; they must be float32\[8, 16\]"),
        (missing, "the scores of 'first/kernel' are missing"),
        ({"first": state.scores}, "tree does not fit the parameters'"),
    ]:
        with pytest.raises(ValueError, match=message):
            tx.update(gradients, state._replace(scores=scores), params)


def test_rules_with_scores_are_written_as_json():
    scores = [None, gp.Random(7), gp.Saliency(), gp.Fisher(0.5), gp.Movement()]
    rules = [gp.Rule(SCHEDULE, score=score) for score in scores]
    assert gp.rules_from_json(gp.rules_to_json(rules)) == rules
    with pytest.raises(ValueError, match="score of rule 0 is a callable"):
        gp.rules_to_json([gp.Rule(SCHEDULE, score=own_score)])
    with pytest.raises(ValueError, match="type of its score is 'Luck'"):
        gp.rules_from_json('{"rules": [{"schedule": null, "score": {"type": "Luck"}}]}')


def test_sensitivity_by_a_score():
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    slopes = jnp.array([[8.0, 1.0], [1.0, 1.0]])

    def loss(params):
        return jnp.sum(slopes * params["kernel"])

    found = gp.sensitivity(loss, params, [0.25, 0.5], score=gp.Saliency())
    # Products are 8, 2, 3, 4: the second goes first, then the third.
    np.testing.assert_array_equal(found.losses, [[15.0, 12.0]])
    counted = params | {"count": jnp.arange(3)}
    again = gp.sensitivity(loss, counted, [0.25, 0.5], score=gp.Saliency())
    np.testing.assert_array_equal(again.losses, found.losses)


def test_a_score_may_return_an_array_of_numpy():
    scores = np.arange(4.0).reshape(2, 2)
    params = {"kernel": np.ones((2, 2), np.float32)}
    _, masks = gp.prune(params, 0.5, score=lambda p, g: scores, gradients=params)
    np.testing.assert_array_equal(masks["kernel"], scores >= 2)
