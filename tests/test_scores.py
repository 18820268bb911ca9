"""Scores: weights ranked by what a user chooses, exactly, on every mesh alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from gradprune_jax._top_k.keys import largest_ranking_key, score_keys
from tests import oracle

SCHEDULE = gp.polynomial_schedule(0.75, begin_step=1, end_step=5, every=2)
SHAPES = {"first": {"kernel": (8, 16)}, "second": {"kernel": (16, 24)}}


def make_tree(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: (np.round(rng.normal(size=shape) * 8) / 8).astype(dtype),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def own_score(param, gradient):
    return param - 2 * gradient


def numpy_scores(score, weights, gradients, state):
    """The new state and the scores, by NumPy in float32."""
    weights, gradients = (each.astype(np.float32) for each in (weights, gradients))
    match score:
        case gp.Saliency():
            return state, np.abs(weights * gradients)
        case gp.Fisher():
            decay, rest = np.float32(score.decay), np.float32(1 - score.decay)
            state = decay * state + rest * (gradients * gradients)
            return state, weights * weights * state
        case gp.Movement():
            state = state - weights * gradients
            return state, state
        case _:
            return state, weights - 2 * gradients


def top_k(scores, mask, kept):
    """The live ones among the first of a stable descending sort, NaN first."""
    flat, live = scores.astype(np.float64).ravel(), mask.ravel()
    nan = np.isnan(flat)
    order = np.lexsort((-np.where(nan, 0, flat), ~nan, ~live))
    chosen = np.zeros(flat.size, bool)
    chosen[order[:kept]] = True
    return (chosen & live).reshape(mask.shape)


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


STRUCTURES = {
    "weights": {},
    "global": dict(allocation="global", min_density=0.1),
    "erk": dict(allocation="erk"),
    "stacked": dict(stack_axis=0),
    "channel floors": dict(min_per_channel=2),
    "largest of blocks": dict(structure=gp.Block((2, 3), pool="max")),
    "mean of blocks": dict(structure=gp.Block((2, 4))),
    "channels": dict(structure=gp.Channel()),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_signed_scores_rank_in_every_structure(name, shift):
    """Scores that are all above zero rank as magnitudes do; the order has no origin."""
    fields = STRUCTURES[name]
    weights = make_tree(3)
    gradients = jax.tree.map(lambda leaf: np.abs(leaf) + 1, make_tree(4))
    plain = jax.tree.map(lambda leaf: leaf + np.float32(shift), gradients)
    _, expected = gp.prune(plain, 0.5, **fields)
    _, found = gp.prune(
        weights,
        0.5,
        score=lambda param, gradient: gradient + (shift - 64),
        gradients=gradients,
        **fields,
    )
    # Numbers of few bits: their means are exact, and a shift changes no order.
    if "mean" in name or name == "channels":
        plain = jax.tree.map(lambda leaf: leaf + np.float32(64), gradients)
        _, expected = gp.prune(plain, 0.5, **fields)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_block_of_signed_scores_has_their_mean(pool):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(12, 20)).astype(np.float32)
    scores[0, 0], scores[4, 5], scores[8, 8] = np.inf, -np.inf, np.nan
    blocks = scores.reshape(6, 2, 5, 4).astype(np.float64)
    units = getattr(blocks, pool)((1, 3))
    if pool == "max":
        units[4, 2] = np.nan
    kept = top_k(units, np.ones(units.shape, bool), 10)
    _, masks = gp.prune(
        {"kernel": np.ones((12, 20), np.float32)},
        2 / 3,
        structure=gp.Block((2, 4), pool=pool),
        score=lambda param, gradient: gradient,
        gradients={"kernel": scores},
    )
    np.testing.assert_array_equal(
        masks["kernel"], np.repeat(np.repeat(kept, 2, 0), 4, 1)
    )


def test_groups_of_four_rank_by_a_score():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(16, 6)).astype(np.float32)
    _, masks = gp.prune(
        {"kernel": np.ones((16, 6), np.float32)},
        0.5,
        structure=gp.NM(2, 4),
        score=lambda param, gradient: gradient,
        gradients={"kernel": scores},
    )
    order = np.argsort(-scores.reshape(4, 4, 6), axis=1)
    expected = np.argsort(order, axis=1) < 2
    np.testing.assert_array_equal(masks["kernel"], expected.reshape(16, 6))


def test_coupled_channels_rank_by_a_score():
    params = {
        "up": {"kernel": np.ones((4, 6), np.float32), "bias": np.ones(6, np.float32)},
        "down": {"kernel": np.ones((6, 3), np.float32)},
    }

    def network(params, inputs):
        hidden = inputs @ params["up"]["kernel"] + params["up"]["bias"]
        return jax.nn.relu(hidden) @ params["down"]["kernel"]

    groups = gp.channel_groups(network, params, np.ones((2, 4), np.float32))
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params
    )
    up, down = gradients["up"]["kernel"], gradients["down"]["kernel"]
    means = np.concatenate((up, down.T)).astype(np.float64).mean(0)
    kept = top_k(means, np.ones(6, bool), 3)
    _, masks = gp.prune(
        params,
        0.5,
        structure=gp.CoupledChannels(groups),
        score=lambda param, gradient: gradient,
        gradients=gradients,
    )
    np.testing.assert_array_equal(masks["up"]["bias"], kept)
    np.testing.assert_array_equal(masks["down"]["kernel"].all(1), kept)


def run_on_a_mesh(score, place, wrap=lambda fn: fn, specs=None):
    """Masks and scores after a run; the weights and gradients are the same on any."""
    tx = gp.with_gradual_prune(
        optax.sgd(0.1), SCHEDULE, score=score, partition_specs=specs
    )
    params = place(make_tree(0))
    state = jax.jit(wrap(tx.init))(params)
    step = jax.jit(wrap(tx.update))
    rng = np.random.default_rng(5)
    for _ in range(6):
        gradients, params = (
            jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32"), params)
            for _ in range(2)
        )
        _, state = jax.block_until_ready(step(place(gradients), state, place(params)))
    return jax.tree.map(np.asarray, (state.prune_state.masks, state[2:])), state


@pytest.mark.parametrize(
    "score", [gp.Random(3), gp.Saliency(), gp.Fisher(0.7), gp.Movement()], ids=str
)
@pytest.mark.parametrize("layout", ["auto", "explicit", "shard_map"])
def test_masks_and_scores_are_the_same_on_every_mesh(score, layout):
    alone, _ = run_on_a_mesh(score, lambda tree: tree)
    kind = AxisType.Explicit if layout == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    specs = {"first": {"kernel": P("x", None)}, "second": {"kernel": P("y", "x")}}

    def place(tree):
        return jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
            tree,
            specs,
        )

    if layout != "shard_map":
        found, state = run_on_a_mesh(score, place)
        if found[1]:
            kernel = state.scores["second"]["kernel"]
            assert kernel.sharding.is_equivalent_to(
                NamedSharding(mesh, P("y", "x")), kernel.ndim
            )
    else:
        prune_state = gp.GradualPruneState(P(), specs)
        inner = optax.sgd(0.1).init(make_tree(0))
        inner = jax.tree.map(lambda _: P(), inner)
        state_specs = gp.WithGradualPruneState(inner, prune_state)
        if isinstance(score, gp.Fisher | gp.Movement):
            state_specs = gp.ScoredPruneState(inner, prune_state, specs)

        def wrap(fn):
            is_init = fn.__name__ == "init_fn"
            in_specs = (specs,) if is_init else (specs, state_specs, specs)
            out_specs = state_specs if is_init else (specs, state_specs)
            return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

        found, _ = run_on_a_mesh(score, place, wrap, specs)
    jax.tree.map(np.testing.assert_array_equal, found, alone)


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


@pytest.mark.parametrize("structure", [None, gp.NM(2, 4), gp.Block((4, 4))], ids=str)
def test_a_score_may_be_laid_out_unlike_its_weight(structure):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    weights = make_tree(0)["second"]["kernel"]
    scores = make_tree(1)["second"]["kernel"]
    placed = jax.device_put(weights, NamedSharding(mesh, P("x", "y")))
    replicated = jax.device_put(scores, NamedSharding(mesh, P()))
    schedule = gp.one_shot_schedule(0.5, 0)

    def masks(params, own):
        tx = gp.with_gradual_prune(
            optax.sgd(0.1), schedule, structure=structure, score=lambda p, g: own
        )
        state = tx.init(params)
        _, state = jax.jit(tx.update)(params, state, params)
        return np.asarray(gp.get_masks(state)["kernel"])

    np.testing.assert_array_equal(
        masks({"kernel": placed}, replicated), masks({"kernel": weights}, scores)
    )


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
