"""The same masks on every mesh: the same weights, masks and count in, the same out."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests import oracle
from tests.meshes import make_mesh

SCHEDULE = gp.polynomial_schedule(0.8, 0, 4, every=2)
LAYOUTS = [P("x", None), P(None, "y"), P("x", "y"), P(("x", "y"), None), P()]
ALLOCATIONS = {
    "uniform": {},
    "global": dict(allocation="global"),
    "global with a floor": dict(allocation="global", min_density=0.3),
    "stacked": dict(stack_axis=0),
}


def make_params():
    """Weights with many ties, two leaves for each layout, of sizes that 8 divides."""
    rng = np.random.default_rng(0)

    def leaves():
        normal = rng.normal(size=(16, 8))
        return {
            "a": {"kernel": np.round(normal * 4).astype(np.float32) / 4},
            "b": {"kernel": rng.integers(-2, 3, size=(8, 24)).astype(jnp.bfloat16)},
        }

    return {str(layout): leaves() for layout in LAYOUTS}


def run(fields, place=lambda tree: tree):
    """Masks after each of six steps, the weights handed in the same on any layout."""
    rng = np.random.default_rng(1)
    params = make_params()
    tx = gp.gradual_prune(SCHEDULE, **fields)
    placed = place(params)
    state = jax.jit(tx.init)(placed)
    step = jax.jit(tx.update)
    masks = []
    for _ in range(6):
        updates = jax.tree.map(
            lambda p: np.round(rng.normal(size=p.shape) * 4).astype(p.dtype), params
        )
        updates, state = jax.block_until_ready(step(place(updates), state, placed))
        masks.append(jax.tree.map(np.asarray, state.masks))
        params = jax.tree.map(
            lambda p, u: np.asarray(p + np.asarray(u), p.dtype), params, updates
        )
        placed = place(params)
    return masks, state


@functools.cache
def on_one_device(allocation):
    masks, _ = run(ALLOCATIONS[allocation])
    return masks


def shardings(mesh):
    """Every layout in one tree, and so in one program."""
    return {str(layout): NamedSharding(mesh, layout) for layout in LAYOUTS}


# In explicit mode global counts are the uniform ones, added up.
@pytest.mark.parametrize(
    ("allocation", "axis_type"),
    [
        *((allocation, AxisType.Auto) for allocation in ALLOCATIONS),
        ("uniform", AxisType.Explicit),
        ("stacked", AxisType.Explicit),
    ],
)
def test_masks_are_the_same_sharded_over_eight_devices(allocation, axis_type):
    fields = ALLOCATIONS[allocation]
    mesh = make_mesh(axis_type)
    layouts = shardings(mesh)
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        masks, state = run(fields, place=lambda tree: jax.device_put(tree, layouts))
    for mine, single in zip(masks, on_one_device(allocation), strict=True):
        chex.assert_trees_all_equal(mine, single)
    for layout, sharding in layouts.items():
        for mask in jax.tree.leaves(state.masks[layout]):
            assert mask.sharding.is_equivalent_to(sharding, mask.ndim)


def test_masks_inherit_their_parameters_sharding_from_init():
    """jnp.ones(p.shape) loses the parameter's sharding."""
    layouts = shardings(make_mesh())
    params = jax.device_put(make_params(), layouts)
    tx = gp.gradual_prune(SCHEDULE)
    for state in (tx.init(params), jax.jit(tx.init)(params)):
        for layout, sharding in layouts.items():
            for mask in jax.tree.leaves(state.masks[layout]):
                assert mask.sharding.is_equivalent_to(sharding, mask.ndim)
                assert bool(mask.all())


@functools.cache
def one_update(allocation):
    """The updates and the state of one mask update on one device."""
    params = make_params()
    tx = gp.gradual_prune(SCHEDULE, **ALLOCATIONS[allocation])
    state = tx.init(params)._replace(count=jnp.int32(2))
    return jax.jit(tx.update)(params, state, params)


@pytest.mark.parametrize("allocation", ["uniform", "global with a floor"])
def test_masks_are_the_same_under_pmap(allocation):
    fields = ALLOCATIONS[allocation]
    params = make_params()
    tx = gp.gradual_prune(SCHEDULE, **fields)
    _, single = one_update(allocation)
    replicate = functools.partial(
        jax.tree.map, lambda leaf: np.stack([np.asarray(leaf)] * 8)
    )
    state = tx.init(params)._replace(count=jnp.int32(2))
    inputs = replicate(params)
    _, state = jax.pmap(tx.update)(inputs, replicate(state), inputs)
    for device in range(8):
        jax.tree.map(
            lambda mask, mine: np.testing.assert_array_equal(mine[device], mask),  # noqa: B023
            single.masks,
            jax.block_until_ready(state.masks),
        )


# Leaves split over one axis and over two, along either dimension, and replicated.
SPECS = {
    str(layout): specs
    for layout, specs in zip(
        LAYOUTS,
        [
            P("x", None),
            P(None, "y"),
            P(("x", "y"), None),
            {"a": {"kernel": P("x", "y")}, "b": P()},
            {"a": P("y"), "b": {"kernel": P(None, "x")}},
        ],
        strict=True,
    )
}


@pytest.mark.parametrize("allocation", ["uniform", "global with a floor", "stacked"])
def test_masks_are_the_same_inside_shard_map(allocation):
    specs = SPECS
    fields = ALLOCATIONS[allocation]
    params = make_params()
    plain = gp.gradual_prune(SCHEDULE, **fields)
    local = gp.gradual_prune(SCHEDULE, **fields, partition_specs=specs)
    state = plain.init(params)._replace(count=jnp.int32(2))
    state_specs = gp.GradualPruneState(P(), specs)
    sharded = jax.jit(
        jax.shard_map(
            local.update,
            mesh=make_mesh(),
            in_specs=(specs, state_specs, specs),
            out_specs=(specs, state_specs),
        )
    )
    updates, new = jax.block_until_ready(sharded(params, state, params))
    expected_updates, single = one_update(allocation)
    chex.assert_trees_all_equal(new.masks, single.masks)
    chex.assert_trees_all_equal(updates, expected_updates)
    assert int(new.count) == 3


def test_init_inside_shard_map():
    specs = SPECS
    tx = gp.gradual_prune(SCHEDULE, partition_specs=specs)
    init = jax.shard_map(
        tx.init,
        mesh=make_mesh(),
        in_specs=(specs,),
        out_specs=gp.GradualPruneState(P(), specs),
    )
    state = jax.jit(init)(make_params())
    shapes = jax.tree.map(np.shape, make_params())
    assert jax.tree.map(np.shape, state.masks) == shapes


def test_partition_specs_that_make_no_sense_are_refused():
    params = make_params()
    for specs, message in [
        (P("x"), "'x' is no axis"),
        ({"c": P()}, "not a prefix"),
        (P("x", None, None), "longer than its shape"),
        (dict.fromkeys(SPECS, "x"), "must be a jax.sharding.PartitionSpec"),
    ]:
        tx = gp.gradual_prune(SCHEDULE, partition_specs=specs)
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params)


LARGE = (512, 520)  # searched from a sample


def make_large():
    normal = np.random.default_rng(3).normal(size=LARGE)
    return {"kernel": np.round(normal * 20).astype(np.float32) / 20}


@functools.cache
def large_on_one_device(allocation):
    params = make_large()
    tx = gp.gradual_prune(SCHEDULE, allocation=allocation)
    state = tx.init(params)._replace(count=jnp.int32(2))
    return np.asarray(jax.jit(tx.update)(params, state, params)[1].masks["kernel"])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layout", [P("x", "y"), P(("x", "y"), None)], ids=str)
def test_a_large_leaf_has_the_same_mask_sharded(layout, axis_type):
    mesh = make_mesh(axis_type)
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        params = jax.device_put(make_large(), NamedSharding(mesh, layout))
        tx = gp.gradual_prune(SCHEDULE)
        state = jax.jit(tx.init)(params)._replace(count=jnp.int32(2))
        _, state = jax.block_until_ready(jax.jit(tx.update)(params, state, params))
    mask = np.asarray(state.masks["kernel"])
    np.testing.assert_array_equal(mask, large_on_one_device("uniform"))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_large_leaf_has_the_same_mask_inside_shard_map(allocation):
    specs = {"kernel": P("y", "x")}
    tx = gp.gradual_prune(SCHEDULE, allocation=allocation, partition_specs=specs)
    params = make_large()
    masks = {"kernel": np.ones(LARGE, bool)}
    update = jax.shard_map(
        lambda params, masks: (
            tx.update(params, gp.GradualPruneState(jnp.int32(2), masks), params)[
                1
            ].masks
        ),
        mesh=make_mesh(),
        in_specs=(specs, specs),
        out_specs=specs,
    )
    mask = jax.block_until_ready(jax.jit(update)(params, masks))["kernel"]
    np.testing.assert_array_equal(mask, large_on_one_device(allocation))


def test_the_oracle_agrees_under_named_sharding():
    fields = dict(allocation="global")
    params = make_params()
    weights = jax.tree.leaves(params)
    masks = [np.ones(leaf.shape, bool) for leaf in weights]
    wanted = oracle.next_masks(weights, masks, float(SCHEDULE.sparsity(2)), **fields)
    sharding = NamedSharding(make_mesh(), P("x", "y"))
    placed = jax.device_put(params, sharding)
    tx = gp.gradual_prune(SCHEDULE, **fields)
    state = jax.jit(tx.init)(placed)._replace(count=jnp.int32(2))
    _, state = jax.block_until_ready(jax.jit(tx.update)(placed, state, placed))
    for mask, mine in zip(wanted, jax.tree.leaves(state.masks), strict=True):
        np.testing.assert_array_equal(mine, mask)


def test_sharded_training_keeps_its_promise_with_adam():
    sharding = NamedSharding(make_mesh(), P("x", "y"))
    params = jax.device_put(make_params(), sharding)
    tx = optax.chain(optax.adamw(0.1), gp.gradual_prune(SCHEDULE))
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(
            lambda p: sum(jnp.sum(leaf.astype(jnp.float32) ** 4) for leaf in p)
        )(jax.tree.leaves(params))
        gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
        updates, state_ = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state_

    for _ in range(6):
        params, state = jax.block_until_ready(step(params, state))
        gp.check_pruned(params, state)
    assert gp.sparsity(params)["total"] >= 0.8
