"""Layouts as users have them: no mesh set, masks laid out otherwise, mixed axes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp

HALF = gp.one_shot_schedule(0.5, 0)


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("f")


@functools.cache
def line(axis_type=AxisType.Explicit, size=8):
    return jax.make_mesh(
        (size,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:size]
    )


CASES = {
    "split stack": ((8, 4, 4), P("x"), dict(stack_axis=0)),
    "blocks that devices cut": ((24, 8), P("x"), dict(structure=gp.Block((2, 2)))),
    "groups that devices cut": ((16, 8), P("x"), dict(structure=gp.NM(2, 4))),
    "one group that devices cut": ((4, 16), P("x"), dict(structure=gp.NM(2, 4))),
    "split channels": ((16, 8), P(None, "x"), dict(min_per_channel=3)),
    "split inputs": ((16, 8), P("x"), dict(min_per_channel=3)),
    "split stack of channels": (
        (8, 4, 6),
        P("x"),
        dict(stack_axis=0, min_per_channel=2, output_axis=0),
    ),
}


@pytest.mark.parametrize("masks_like_weights", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_explicit_mode_needs_no_mesh_set_and_no_layout_of_masks(
    case, masks_like_weights
):
    """A bare PartitionSpec needs `jax.set_mesh`; restored masks may be replicated."""
    shape, spec, fields = CASES[case]
    mesh = line(size=4 if shape[0] == 4 else 8)
    params = {"w": weights(shape)}
    tx = gp.gradual_prune(HALF, **fields)
    _, expected = tx.update(params, tx.init(params), params)
    placed = jax.device_put(params, NamedSharding(mesh, spec))
    state = tx.init(placed)
    if not masks_like_weights:
        masks = jax.device_put(np.ones(shape, bool), NamedSharding(mesh, P()))
        state = state._replace(masks={"w": masks})
    updates, new = jax.block_until_ready(jax.jit(tx.update)(placed, state, placed))
    np.testing.assert_array_equal(new.masks["w"], expected.masks["w"])
    assert new.masks["w"].sharding.is_equivalent_to(placed["w"].sharding, len(shape))
    assert np.all(np.asarray(placed["w"] + updates["w"])[~expected.masks["w"]] == 0)
    gp.check_pruned(gp.apply_masks(placed, state.masks), state)


def test_prune_in_explicit_mode_needs_no_mesh_set():
    shape, spec, fields = CASES["groups that devices cut"]
    params = {"w": weights(shape)}
    placed = jax.device_put(params, NamedSharding(line(), spec))
    _, masks = gp.prune(placed, 0.5, **fields)
    _, expected = gp.prune(params, 0.5, **fields)
    np.testing.assert_array_equal(masks["w"], expected["w"])


@pytest.mark.parametrize("spec", [P("a"), P("b"), P("a", "b")], ids=str)
def test_axes_of_several_types_and_of_one_device(spec):
    """XLA leaves out a mesh axis of one device, so masks had another type."""
    mesh = jax.make_mesh(
        (1, 8), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Auto)
    )
    params = {"w": weights((8, 8))}
    tx = gp.gradual_prune(HALF)
    _, expected = tx.update(params, tx.init(params), params)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, NamedSharding(mesh, spec))
        state = tx.init(placed)
        _, new = jax.block_until_ready(jax.jit(tx.update)(placed, state, placed))
        _, masks = gp.prune(placed, 0.5)
        gp.check_pruned(gp.apply_masks(placed, new.masks), new)
    np.testing.assert_array_equal(new.masks["w"], expected.masks["w"])
    np.testing.assert_array_equal(masks["w"], expected.masks["w"])


def test_steps_in_a_loop_on_axes_of_several_types():
    """The masks of `init` have the types of those that an update returns."""
    mesh = jax.make_mesh(
        (1, 8), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Auto)
    )
    placed = jax.device_put({"w": weights((8, 16))}, NamedSharding(mesh, P("a", "b")))
    tx = gp.gradual_prune(gp.polynomial_schedule(0.5, 0, 2, every=1))

    def step(carried, _):
        params, state = carried
        updates, state = tx.update(params, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    start = placed, tx.init(placed)
    (params, state), _ = jax.jit(lambda start: jax.lax.scan(step, start, None, 3))(
        start
    )
    gp.check_pruned(params, state)
    assert gp.metrics(state)["sparsity/w"] == 0.5


def test_a_replicated_leaf_does_not_take_the_layout_of_another():
    shapes = {"a": (8, 24, 16), "b": (8, 64, 32)}
    specs = {"a": P(), "b": P("x")}
    params = {name: weights(shape) for name, shape in shapes.items()}
    mesh = line(AxisType.Auto)
    placed = {
        n: jax.device_put(p, NamedSharding(mesh, specs[n])) for n, p in params.items()
    }
    tx = gp.gradual_prune(
        HALF, where=".*", allocation="global", stack_axis=0, min_density=0.2
    )
    state = tx.init(placed)
    updates, new = jax.block_until_ready(jax.jit(tx.update)(placed, state, placed))
    for name, leaf in placed.items():
        for array in (new.masks[name], updates[name]):
            assert array.sharding.is_equivalent_to(leaf.sharding, 3), name


@pytest.mark.parametrize(
    "fields",
    [{}, dict(min_per_channel=3), dict(structure=gp.Channel()), dict(stack_axis=0)],
)
def test_a_mesh_of_one_device_inside_shard_map(fields):
    """Small leaves are whole there, but vary along the axis that splits them."""
    mesh = jax.make_mesh(
        (1,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
    )
    params = {"a": weights((8, 16)), "b": weights((16, 8)), "c": weights((4, 4))}
    specs = {"a": P(None, "x"), "b": P("x"), "c": P()}
    plain = gp.gradual_prune(HALF, where=".*", **fields)
    _, expected = plain.update(params, plain.init(params), params)
    local = gp.gradual_prune(HALF, where=".*", **fields, partition_specs=specs)
    state_specs = gp.GradualPruneState(P(), specs)
    update = jax.shard_map(
        local.update,
        mesh=mesh,
        in_specs=(specs, state_specs, specs),
        out_specs=(specs, state_specs),
    )
    _, state = jax.block_until_ready(
        jax.jit(update)(params, plain.init(params), params)
    )
    for name, mask in expected.masks.items():
        np.testing.assert_array_equal(state.masks[name], mask)


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        (P("x"), dict(min_per_channel=3)),
        (P(None, "x"), dict(min_per_channel=3)),
        (P(None, "x"), dict(min_per_channel=3, output_axis=0)),
        (P("x"), dict(min_per_channel=3, allocation="global")),
        (P("x"), dict(min_per_channel=4, structure=gp.Block((2, 1)))),
    ],
)
def test_floors_of_channels_inside_shard_map(spec, fields):
    params = {"w": weights((16, 16))}
    schedule = gp.one_shot_schedule(0.9, 0)
    plain = gp.gradual_prune(schedule, **fields)
    _, expected = plain.update(params, plain.init(params), params)
    local = gp.gradual_prune(schedule, **fields, partition_specs=spec)
    update = jax.shard_map(
        lambda masks, params: (
            local.update(params, gp.GradualPruneState(jnp.int32(0), masks), params)[
                1
            ].masks
        ),
        mesh=line(AxisType.Auto),
        in_specs=(spec, spec),
        out_specs=spec,
    )
    masks = {"w": np.ones((16, 16), bool)}
    masks = jax.block_until_ready(jax.jit(update)(masks, params))
    np.testing.assert_array_equal(masks["w"], expected.masks["w"])
    axis = 1 if fields.get("output_axis") == 0 else 0
    assert masks["w"].sum(axis).min() >= fields["min_per_channel"]


def test_one_group_that_devices_cut_inside_shard_map():
    params = {"kernel": weights((4, 8))}
    _, expected = gp.prune(params, 0.5, structure=gp.NM(2, 4))
    tx = gp.gradual_prune(HALF, structure=gp.NM(2, 4), partition_specs=P("x"))
    update = jax.shard_map(
        lambda masks, params: (
            tx.update(params, gp.GradualPruneState(jnp.int32(0), masks), params)[
                1
            ].masks
        ),
        mesh=line(AxisType.Auto, size=2),
        in_specs=(P("x"), P("x")),
        out_specs=P("x"),
    )
    masks = {"kernel": np.ones((4, 8), bool)}
    masks = jax.block_until_ready(jax.jit(update)(masks, params))
    np.testing.assert_array_equal(masks["kernel"], expected["kernel"])


def test_outside_jit_leaves_may_lie_on_different_devices():
    devices = jax.devices()
    meshes = [jax.sharding.Mesh(np.array(devices[i : i + 2]), ("x",)) for i in (0, 2)]
    params = {
        name: {"kernel": jax.device_put(weights((8, 8)), NamedSharding(mesh, P("x")))}
        for name, mesh in zip("ab", meshes, strict=True)
    }
    rules = [gp.Rule(HALF, where="a/kernel"), gp.Rule(HALF, where="b/kernel")]
    tx = gp.gradual_prune(rules)
    _, state = tx.update(params, tx.init(params), params)
    assert {float(s) for s in gp.sparsity(state.masks).values()} == {0.5}
