"""Sparse training: whole runs against NumPy, on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from gradprune_jax._scores import uniform
from tests import oracle

SHAPES = {"first": (8, 16), "second": (16, 24)}
WINDOW = dict(begin_step=0, end_step=9, every=3, drop_fraction=0.5)
STEPS = 11


def make_tree(seed, dtype=np.float32):
    """Numbers of few bits, with many ties, and a leaf that stays dense."""
    rng = np.random.default_rng(seed)
    tree = {
        name: {"kernel": (rng.integers(-16, 17, size=shape) / 8).astype(dtype)}
        for name, shape in SHAPES.items()
    }
    return tree | {"bias": np.ones(4, dtype)}


def drop_fraction(step):
    turned = np.cos(np.pi * (step - WINDOW["begin_step"]) / WINDOW["end_step"])
    return np.float32(WINDOW["drop_fraction"] / 2 * (1 + turned))


def moved_masks(mask, weights, scores, step):
    """The masks after an update: drop the smallest, grow the highest."""
    live = int(mask.sum())
    exact = oracle.Fraction(float(drop_fraction(step))) * live
    moved = round(exact)
    kept = oracle.top_k(np.where(mask, np.abs(weights), oracle.PRUNED), live - moved)
    grown = oracle.top_k(np.where(kept, oracle.PRUNED, scores), moved)
    return kept | grown


def numpy_run(grow, masks, dtype):
    """Weights, masks and momentum after every step, by NumPy."""
    params = make_tree(0, dtype)
    trace = jax.tree.map(np.zeros_like, params)
    masks = dict(masks)
    for step in range(STEPS):
        gradients = make_tree(step + 1, dtype)
        for name in SHAPES:
            old = masks[name]
            weights = params[name]["kernel"].copy()
            gradient = gradients[name]["kernel"]
            masked = np.where(old, gradient, 0).astype(dtype)
            trace[name]["kernel"] = (
                masked + trace[name]["kernel"] * np.asarray(0.5, dtype)
            ).astype(dtype)
            if grow and step < WINDOW["end_step"] and step % WINDOW["every"] == 0:
                scores = np.abs(gradient.astype(np.float64))
                if grow == "random":
                    index = jnp.arange(gradient.size, dtype=jnp.uint32)
                    drawn = uniform(7, f"{name}/kernel", index, jnp.uint32(step + 1))
                    scores = np.asarray(drawn).reshape(gradient.shape)
                masks[name] = moved_masks(old, weights, scores, step)
            stays = old & masks[name]
            changed = old ^ masks[name]
            step_size = np.asarray(-0.125, dtype) * trace[name]["kernel"]
            trace[name]["kernel"][changed] = 0
            params[name]["kernel"] = np.where(
                stays, (weights + step_size).astype(dtype), 0
            ).astype(dtype)
        yield params, masks, trace


def make_transformation(grow, **fields):
    return gp.with_sparse_training(
        optax.sgd(0.125, momentum=0.5), 0.75, grow=grow, seed=7, **WINDOW, **fields
    )


def compare(state, params, expected):
    """The masks, the weights and the momentum, bit for bit."""
    weights, masks, trace = expected
    found = gp.get_masks(state)
    for name in SHAPES:
        own = np.asarray(params[name]["kernel"])
        np.testing.assert_array_equal(np.asarray(found[name]["kernel"]), masks[name])
        np.testing.assert_array_equal(own, weights[name]["kernel"])
        assert not np.signbit(own[~masks[name]].astype(np.float32)).any()
        np.testing.assert_array_equal(
            np.asarray(state.inner_state[0].trace[name]["kernel"]),
            trace[name]["kernel"],
        )


@pytest.mark.parametrize("grow", ["gradient", "random", None])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_run_is_that_of_numpy(grow, dtype):
    tx = make_transformation(grow)
    params = make_tree(0, dtype)
    state = jax.jit(tx.init)(params)
    first = {
        name: np.asarray(state.prune_state.masks[name]["kernel"]) for name in SHAPES
    }
    live = {name: int(mask.sum()) for name, mask in first.items()}
    step = jax.jit(tx.update)
    moved = []
    for count, expected in enumerate(numpy_run(grow, first, dtype)):
        updates, state = step(make_tree(count + 1, dtype), state, params)
        params = optax.apply_updates(params, updates)
        compare(state, params, expected)
        gp.check_pruned(params, state)
        masks = gp.get_masks(state)
        assert {name: int(masks[name]["kernel"].sum()) for name in SHAPES} == live
        moved.append(float(gp.metrics(state)["moved"]))
    assert all(fraction > 0 for fraction in moved) if grow else not any(moved)
    assert len(set(moved)) == (3 if grow else 1)


def placed_on(mesh, specs):
    return functools.partial(
        jax.tree.map,
        lambda spec, leaf: jax.device_put(leaf, NamedSharding(mesh, spec)),
        specs,
        is_leaf=lambda node: isinstance(node, P),
    )


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("layout", ["auto", "explicit", "shard_map"])
def test_a_run_on_eight_devices_is_that_on_one(grow, layout):
    kind = AxisType.Explicit if layout == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    specs = {
        "first": {"kernel": P("x", None)},
        "second": {"kernel": P("y", "x")},
        "bias": P(),
    }
    place = placed_on(mesh, specs)
    tx = make_transformation(
        grow, partition_specs=specs if layout == "shard_map" else None
    )
    params = place(make_tree(0))
    init, update = tx.init, tx.update
    if layout == "shard_map":
        trace = (optax.TraceState(specs), optax.EmptyState())
        masks = specs | {"bias": optax.MaskedNode()}
        prune_state = gp.GradualPruneState(P(), masks)
        state_specs = gp.SparseTrainingState(trace, prune_state, P())
        init = jax.shard_map(init, mesh=mesh, in_specs=(specs,), out_specs=state_specs)
        update = jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(specs, state_specs, specs),
            out_specs=(specs, state_specs),
        )
    state = jax.jit(init)(params)
    alone = make_transformation(grow).init(make_tree(0))
    first = {
        name: np.asarray(alone.prune_state.masks[name]["kernel"]) for name in SHAPES
    }
    for name in SHAPES:
        mask = state.prune_state.masks[name]["kernel"]
        np.testing.assert_array_equal(np.asarray(mask), first[name])
        wanted = NamedSharding(mesh, specs[name]["kernel"])
        assert mask.sharding.is_equivalent_to(wanted, mask.ndim)
    step = jax.jit(update)
    for count, expected in enumerate(numpy_run(grow, first, np.float32)):
        gradients = place(make_tree(count + 1))
        updates, state = jax.block_until_ready(step(gradients, state, params))
        params = place(jax.tree.map(np.asarray, optax.apply_updates(params, updates)))
        compare(state, params, expected)


def test_a_replicated_run_stays_in_step_over_devices():
    """In pmap gradients are averaged first; then all devices have the same masks."""
    tx = make_transformation("gradient")
    params = make_tree(0)
    state = tx.init(params)

    @functools.partial(jax.pmap, axis_name="batch")
    def step(state, params, gradients):
        gradients = jax.lax.pmean(gradients, "batch")
        updates, state = tx.update(gradients, state, params)
        return state, optax.apply_updates(params, updates)

    def replicated(tree):
        return jax.tree.map(lambda leaf: np.stack([leaf] * 8), tree)

    state, params = replicated((state, params))
    for count in range(5):
        shards = [make_tree(100 + 8 * count + device) for device in range(8)]
        gradients = jax.tree.map(lambda *leaves: np.stack(leaves), *shards)
        state, params = jax.block_until_ready(step(state, params, gradients))
        for leaf in jax.tree.leaves((state, params)):
            leaf = np.asarray(leaf)
            assert (leaf == leaf[:1]).all()


@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_the_first_masks_have_exact_counts(allocation):
    params = make_tree(0)
    tx = gp.with_sparse_training(
        optax.adam(1e-3), 0.75, allocation=allocation, end_step=10
    )
    masks = gp.get_masks(tx.init(params))
    _, expected = gp.prune(params, 0.75, allocation=allocation)
    for name in SHAPES:
        assert masks[name]["kernel"].sum() == expected[name]["kernel"].sum()
    others = gp.with_sparse_training(optax.adam(1e-3), 0.75, end_step=10, seed=1)
    assert (
        gp.get_masks(others.init(params))["first"]["kernel"] != masks["first"]["kernel"]
    ).any()


INNER = {
    "adamw": optax.adamw(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "hyperparameters": optax.inject_hyperparams(optax.adam)(1e-2),
    "lion": optax.lion(1e-3),
    "partition": optax.partition(
        {"kernels": optax.adam(1e-2), "rest": optax.sgd(0.1)},
        lambda params: {
            "first": {"kernel": "kernels"},
            "second": {"kernel": "kernels"},
            "bias": "rest",
        },
    ),
    "accumulated": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", INNER)
def test_the_state_of_weights_that_move_begins_anew(name):
    tx = gp.with_sparse_training(INNER[name], 0.5, **WINDOW)
    params = make_tree(0)
    state = tx.init(params)
    step = jax.jit(tx.update)
    for count in range(5):
        before = gp.get_masks(state)
        updates, state = step(make_tree(count + 1), state, params)
        params = optax.apply_updates(params, updates)
        gp.check_pruned(params, state)
        after = gp.get_masks(state)
        for layer, shape in SHAPES.items():
            changed = np.asarray(before[layer]["kernel"] ^ after[layer]["kernel"])
            pruned = ~np.asarray(after[layer]["kernel"])
            assert changed.any() == (count % 3 == 0)
            like = [
                np.asarray(leaf)
                for leaf in jax.tree.leaves(state.inner_state)
                if np.shape(leaf) == shape
            ]
            assert like or name == "adafactor"
            for leaf in like:
                assert not leaf[changed].any()
                assert not leaf[pruned].any()


def test_a_step_is_traced_once_and_eager_steps_agree():
    traces = []

    def update(*arguments):
        traces.append(1)
        return tx.update(*arguments)

    tx = make_transformation("gradient")
    params = eager = make_tree(0)
    state = other = tx.init(params)
    step = jax.jit(update)
    for count in range(5):
        gradients = make_tree(count + 1)
        updates, state = step(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, other = tx.update(gradients, other, eager)
        eager = optax.apply_updates(eager, updates)
    assert len(traces) == 1
    jax.tree.map(np.testing.assert_array_equal, (params, state), (eager, other))


@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_sparsities_are_vectorised(allocation):
    params = make_tree(0)
    sparsities = np.array([0.0, 0.5, 0.9, 1.0], np.float32)

    def live(sparsity):
        tx = gp.with_sparse_training(
            optax.adam(1e-2), sparsity, allocation=allocation, **WINDOW
        )
        state = tx.init(params)
        _, state = tx.update(make_tree(1), state, params)
        return gp.get_masks(state)["second"]["kernel"].sum()

    together = jax.vmap(live)(sparsities)
    assert list(together) == [live(float(sparsity)) for sparsity in sparsities]
    assert int(together[-1]) == 0


def test_trees_and_states_of_other_shapes():
    """No leaves, leaves without an update, several arrays in a parameter's place."""
    tx = gp.with_sparse_training(optax.adam(1e-2), 0.5, **WINDOW)
    assert not jax.tree.leaves(gp.get_masks(tx.init({})))
    doubled = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(make_tree(0)))
    assert float(doubled.inner_state[0].mu["bias"][0]) == 1
    params = make_tree(0) | {"act": None}
    state = tx.init(params)
    _, state = jax.jit(tx.update)(make_tree(1) | {"act": None}, state, params)
    assert state.inner_state[0].mu["act"] is None
    frozen = make_tree(0) | {"frozen": {"kernel": np.ones((2, 2), np.float32)}}
    gradients = make_tree(1) | {"frozen": {"kernel": None}}
    with pytest.raises(ValueError, match="'frozen/kernel' is pruned but its update"):
        tx.update(gradients, tx.init(frozen), frozen)
    with pytest.warns(UserWarning, match="dense"):
        tx.init({"kernel": np.ones((2, 2)), "other": np.ones((90, 9))})
    sm3 = gp.with_sparse_training(optax.sm3(0.1), 0.5, **WINDOW)
    params = make_tree(0)
    updates, state = jax.jit(sm3.update)(make_tree(1), sm3.init(params), params)
    gp.check_pruned(optax.apply_updates(params, updates), state)


def test_masks_are_given_and_kept():
    """A zero that is live stays live in masks; masks made of the weights lose it."""
    tx = make_transformation("gradient")
    params = make_tree(0)
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(make_tree(1), state, params)
    params = optax.apply_updates(params, updates)  # grown weights are zero now
    masks = gp.get_masks(state)
    from_zeros = gp.masks_from_params(params)
    lost = masks["first"]["kernel"] & ~from_zeros["first"]["kernel"]
    assert int(lost.sum()) > 0
    restored = gp.set_masks(tx.init(make_tree(0)), masks)
    restored = restored._replace(
        prune_state=restored.prune_state._replace(count=state.prune_state.count),
        inner_state=state.inner_state,
        moved=state.moved,
    )
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_wrong_arguments_are_refused():
    adam = optax.adam(1e-3)
    with pytest.raises(ValueError, match="comes before the sparsity"):
        gp.with_sparse_training(0.9, adam)
    with pytest.raises(ValueError, match="end_step is None with grow='gradient'"):
        gp.with_sparse_training(adam, 0.9)
    with pytest.raises(ValueError, match="grow is 'best'"):
        gp.with_sparse_training(adam, 0.9, grow="best", end_step=10)
    with pytest.raises(ValueError, match="allocation is 'global'"):
        gp.with_sparse_training(adam, 0.9, allocation="global", end_step=10)
    with pytest.raises(ValueError, match="drop_fraction is 1.5"):
        gp.with_sparse_training(adam, 0.9, drop_fraction=1.5, end_step=10)
    with pytest.raises(ValueError, match="sparsity is 90"):
        gp.with_sparse_training(adam, 90, end_step=10)
    with pytest.raises(ValueError, match="seed is 0.5"):
        gp.with_sparse_training(adam, 0.9, end_step=10, seed=0.5)
    with pytest.raises(ValueError, match="begin_step"):
        gp.with_sparse_training(adam, 0.9, begin_step=11, end_step=10)
    with pytest.raises(ValueError, match="no weight would ever move"):
        gp.with_sparse_training(adam, 0.9, begin_step=10, end_step=10)
    with pytest.raises(ValueError, match="drop_fraction is traced"):
        jax.jit(
            lambda f: gp.with_sparse_training(adam, 0.9, end_step=9, drop_fraction=f)
        )(0.1)
    tx = gp.with_sparse_training(adam, 0.9, grow=None)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(make_tree(1), tx.init(make_tree(0)))
    with pytest.raises(ValueError, match="must be the SparseTrainingState"):
        tx.update(make_tree(1), adam.init(make_tree(0)), make_tree(0))


@pytest.mark.parametrize(
    "name", ["accumulated", "hyperparameters", "chained", "movement"]
)
def test_a_checkpoint_goes_on_with_the_same_bits(name, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = {
        "accumulated": optax.MultiSteps(make_transformation("random"), 2),
        "hyperparameters": optax.inject_hyperparams(
            lambda learning_rate: gp.with_sparse_training(
                optax.adam(learning_rate), 0.75, **WINDOW
            )
        )(1e-2),
        "chained": optax.chain(
            optax.clip_by_global_norm(1.0), make_transformation("gradient")
        ),
        "movement": gp.with_gradual_prune(
            optax.adam(1e-2),
            gp.polynomial_schedule(0.75, 0, 9, every=3),
            score=gp.Movement(),
        ),
    }[name]
    step = jax.jit(tx.update)

    def train(params, state, counts):
        for count in counts:
            updates, state = step(make_tree(count + 1), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params = jax.tree.map(jnp.asarray, make_tree(0))
    whole = train(params, tx.init(params), range(10))
    half = train(params, tx.init(params), range(5))
    target = jax.eval_shape(lambda: (params, tx.init(params)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", half)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "half", target)
    jax.tree.map(np.testing.assert_array_equal, train(*restored, range(5, 10)), whole)
    gp.check_pruned(*whole)
    assert 0.5 < gp.metrics(whole[1])["sparsity/total"] < 0.8
