"""Sparse training on eight devices is that on one."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.regrowing import (
    SHAPES,
    compare,
    make_transformation,
    make_tree,
    numpy_run,
)


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
