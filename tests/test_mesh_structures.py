"""Blocks, channels and N:M on every mesh: the masks of one device, bit for bit."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.meshes import MOVING, all_reduced_words, make_mesh

SCHEDULE = gp.polynomial_schedule(0.6, 0, 4, every=2)


def schedule_of(fields):
    """The schedule of all, or the own of an N:M pattern."""
    pattern = fields.get("structure")
    if not isinstance(pattern, gp.NM):
        return SCHEDULE
    return gp.polynomial_schedule(1 - pattern.keep / pattern.of, 0, 4, every=2)


SHAPE = (16, 24)
RULES = {
    "blocks": dict(structure=gp.Block((2, 3))),
    "blocks over boundaries": dict(structure=gp.Block((3, 5), "max")),
    "channels": dict(structure=gp.Channel()),
    "input channels, global": dict(
        structure=gp.Channel(-2), allocation="global", min_density=0.2
    ),
    "2:4": dict(structure=gp.NM(2, 4)),
    "groups over boundaries": dict(structure=gp.NM(3, 8, axis=-1)),
    "erk": dict(allocation="erk"),
    "stacked blocks": dict(structure=gp.Block((1,)), stack_axis=0, allocation="global"),
}


# All rules in one program: compiling one for each would take most of the time.
TX = functools.partial(
    gp.gradual_prune,
    [
        gp.Rule(schedule_of(fields), where=f"{name}/.*", **fields)
        for name, fields in RULES.items()
    ],
)


def make_params():
    """Weights with ties among means, and for rules over several leaves a second one."""
    rng = np.random.default_rng(0)
    params = {}
    for name, fields in RULES.items():
        ties = np.round(rng.normal(size=SHAPE) * 4).astype(np.float32) / 4
        params[name] = {"a": ties}
        if "allocation" in fields:
            params[name]["b"] = rng.normal(size=SHAPE).astype(jnp.bfloat16)
    return params


@functools.cache
def on_one_device():
    return updated(make_params())


def updated(params):
    """The masks after the update at step 2, all weights kept before."""
    tx = TX()
    state = jax.jit(tx.init)(params)._replace(count=jnp.int32(2))
    _, state = jax.block_until_ready(jax.jit(tx.update)(params, state, params))
    return state.masks


@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [
        (P(None, ("x", "y")), AxisType.Auto),
        (P("y", "x"), AxisType.Explicit),
    ],
    ids=str,
)
def test_masks_are_the_same_sharded_over_eight_devices(layout, axis_type):
    mesh = make_mesh(axis_type)
    sharding = NamedSharding(mesh, layout)
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        masks = updated(jax.device_put(make_params(), sharding))
    for name, expected in on_one_device().items():
        for leaf, mask in masks[name].items():
            np.testing.assert_array_equal(mask, expected[leaf], err_msg=name)
            assert mask.sharding.is_equivalent_to(sharding, mask.ndim)


def test_masks_are_the_same_inside_shard_map():
    params = make_params()
    specs = {
        name: {"a": P("x", "y")} | ({"b": P(None, "y")} if "b" in leaves else {})
        for name, leaves in params.items()
    }
    local = TX(partition_specs=specs)
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    update = jax.shard_map(
        lambda params, masks: (
            local.update(params, gp.GradualPruneState(jnp.int32(2), masks), params)[
                1
            ].masks
        ),
        mesh=make_mesh(),
        in_specs=(specs, specs),
        out_specs=specs,
    )
    masks = jax.block_until_ready(jax.jit(update)(params, masks))
    for name, expected in on_one_device().items():
        for leaf, mask in masks[name].items():
            np.testing.assert_array_equal(mask, expected[leaf], err_msg=name)


@pytest.mark.parametrize(
    ("fields", "layout", "words"),
    [
        (dict(structure=gp.Block((4, 4))), P("x", "y"), 4),
        (dict(structure=gp.NM(2, 4)), P("x", "y"), 0),
        # The sums of a channel's parts, in two digits.
        (dict(structure=gp.Channel()), P("x", None), 2 * 64),
        (dict(structure=gp.Channel()), P(None, "y"), 4),
    ],
)
def test_units_inside_a_device_move_counts_alone(fields, layout, words):
    shape = (128, 64)
    sharding = NamedSharding(make_mesh(), layout)
    tx = gp.gradual_prune(schedule_of(fields), **fields)
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}
    mask = {"kernel": jax.ShapeDtypeStruct(shape, bool, sharding=sharding)}
    state = gp.GradualPruneState(jax.ShapeDtypeStruct((), jnp.int32), mask)
    program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    for other in MOVING:
        assert other not in program
    assert max(all_reduced_words(program), default=0) <= words
