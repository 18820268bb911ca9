"""Sparse training: whole runs against NumPy, and what else optax does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradprune_jax as gp
from tests.regrowing import (
    SHAPES,
    WINDOW,
    compare,
    make_transformation,
    make_tree,
    numpy_run,
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


def test_parameters_in_a_tuple_as_long_as_the_chain():
    """A chain's state is a tuple too, and is told from the parameters' by its parts."""
    inner = optax.chain(optax.trace(0.9), optax.sgd(0.1))
    tx = gp.with_sparse_training(inner, 0.5, **WINDOW)
    params = tuple({"kernel": make_tree(seed)["first"]["kernel"]} for seed in range(2))
    state = tx.init(params)
    before = gp.get_masks(state)
    updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
    traces = jax.tree.leaves(state.inner_state)
    assert len(traces) == 2
    for trace, old, new in zip(
        traces,
        jax.tree.leaves(before),
        jax.tree.leaves(gp.get_masks(state)),
        strict=True,
    ):
        changed = np.asarray(old ^ new)
        assert changed.any()
        assert not np.asarray(trace)[changed].any()
        assert np.asarray(trace)[~changed & np.asarray(new)].all()


@pytest.mark.parametrize(
    "inner",
    [
        optax.lbfgs(),
        optax.chain(
            optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True)
        ),
    ],
    ids=["lbfgs", "backtracking"],
)
def test_line_searches(inner):
    def loss(params):
        return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params))

    tx = gp.with_sparse_training(inner, 0.5, **WINDOW)
    params = make_tree(0)
    state = tx.init(params)
    value_and_grad = optax.value_and_grad_from_state(loss)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        return optax.apply_updates(params, updates), state

    losses = []
    for _ in range(8):
        params, state = step(params, state)
        gp.check_pruned(params, state)
        losses.append(float(loss(params)))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


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
