"""Saved, restored, and trained on with the same bits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.8, 1, 7, every=2)
TX = optax.chain(optax.adamw(1e-2), gp.gradual_prune(SCHEDULE))


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": {
            "kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32),
            "bias": jnp.ones(8),
        },
        "b": {"kernel": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16)},
    }


@jax.jit
def step(params, state, gradients):
    updates, state = TX.update(gradients, state, params)
    return optax.apply_updates(params, updates), state


def train(params, state, steps):
    for i in steps:
        params, state = jax.block_until_ready(step(params, state, make_params(i + 1)))
    return params, state


def assert_same_bits(one, other):
    chex.assert_trees_all_equal_structs(one, other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_orbax_round_trip_goes_on_with_the_same_bits(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = make_params()
    uninterrupted = train(params, TX.init(params), range(10))
    halfway = train(params, TX.init(params), range(4))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", halfway)
    target = jax.eval_shape(lambda: (params, TX.init(params)))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "step", target)
    assert_same_bits(restored, halfway)
    assert_same_bits(gp.get_masks(restored[1]), gp.get_masks(halfway[1]))
    assert_same_bits(train(*restored, range(4, 10)), uninterrupted)


def test_orbax_restores_identical_bits_on_another_mesh(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    mesh = jax.make_mesh(
        (4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    params = make_params()
    saved = train(params, TX.init(params), range(4))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", saved)
    sharding = NamedSharding(mesh, P("x"))
    replicated = NamedSharding(mesh, P())
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding if leaf.ndim > 1 else replicated
        ),
        jax.eval_shape(lambda: (params, TX.init(params))),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "step", target)
    assert_same_bits(restored, saved)
    new = jax.block_until_ready(step(*restored, make_params(9)))
    gp.check_pruned(*new)


def test_flax_serialization_round_trip():
    params = make_params()
    halfway = train(params, TX.init(params), range(4))
    data = serialization.to_bytes(halfway)
    restored = serialization.from_bytes((params, TX.init(params)), data)
    assert_same_bits(restored, halfway)


@pytest.mark.parametrize("restore", ["flax", "orbax"])
def test_a_state_restored_as_numpy_arrays_is_inspected_and_set(restore, tmp_path):
    params, state = halfway = train(make_params(), TX.init(make_params()), range(4))
    if restore == "flax":
        target = jax.tree.map(np.asarray, halfway)
        data = serialization.to_bytes(halfway)
        restored = serialization.from_bytes(target, data)
    else:
        ocp = pytest.importorskip("orbax.checkpoint")
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), halfway
        )
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "step", halfway)
            restored = checkpointer.restore(
                tmp_path / "step", item=halfway, restore_args=arguments
            )
    assert isinstance(jax.tree.leaves(restored[1][1].masks)[0], np.ndarray)
    gp.check_pruned(*restored)
    for name, value in gp.metrics(restored[1]).items():
        assert value == gp.metrics(state)[name]
    masks = gp.masks_from_params(restored[0])
    again = gp.set_masks(restored[1], masks)
    assert_same_bits(gp.get_masks(again), gp.get_masks(state))
    assert_same_bits(
        train(restored[0], again, range(4, 6)), train(params, state, range(4, 6))
    )


def test_a_checkpoint_does_not_override_a_changed_configuration():
    """A checkpointed target sparsity overrides the changed configuration in others."""
    params = make_params()
    params, state = train(params, TX.init(params), range(8))
    sparser = optax.chain(
        optax.adamw(1e-2), gp.gradual_prune(gp.one_shot_schedule(0.95, 8))
    )
    updates, state = sparser.update(make_params(9), state, params)
    assert float(gp.metrics(state)["sparsity/total"]) == pytest.approx(0.95, abs=0.01)


def test_the_parameters_of_a_checkpoint_are_the_sparse_model():
    params, _ = train(make_params(), TX.init(make_params()), range(9))
    data = serialization.msgpack_restore(serialization.to_bytes(params))
    assert (np.asarray(data["a"]["kernel"]) == 0).mean() >= 0.79
