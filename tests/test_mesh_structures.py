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
from tests.test_mesh import MOVING, all_reduced_words, make_mesh

SCHEDULE = gp.polynomial_schedule(0.6, 0, 4, every=2)
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


def make_params():
    """Weights with ties among means, in a leaf on the mesh and a small one."""
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": np.round(rng.normal(size=SHAPE) * 4).astype(np.float32) / 4},
        "b": {"kernel": rng.normal(size=SHAPE).astype(jnp.bfloat16)},
    }


@functools.cache
def on_one_device(name):
    return updated(name, make_params())


def updated(name, params):
    """The masks after the update at step 2, all weights kept before."""
    tx = gp.gradual_prune(SCHEDULE, **RULES[name])
    state = jax.jit(tx.init)(params)._replace(count=jnp.int32(2))
    _, state = jax.block_until_ready(jax.jit(tx.update)(params, state, params))
    return state.masks


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("layout", "axis_type"),
    [
        (P("x", "y"), AxisType.Auto),
        (P(None, ("x", "y")), AxisType.Auto),
        (P("y", "x"), AxisType.Explicit),
    ],
    ids=str,
)
def test_masks_are_the_same_sharded_over_eight_devices(name, layout, axis_type):
    mesh = make_mesh(axis_type)
    sharding = NamedSharding(mesh, layout)
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        masks = updated(name, jax.device_put(make_params(), sharding))
    jax.tree.map(np.testing.assert_array_equal, masks, on_one_device(name))
    for mask in jax.tree.leaves(masks):
        assert mask.sharding.is_equivalent_to(sharding, mask.ndim)


@pytest.mark.parametrize("name", RULES)
def test_masks_are_the_same_inside_shard_map(name):
    specs = {"a": P("x", "y"), "b": {"kernel": P(None, "y")}}
    params = make_params()
    local = gp.gradual_prune(SCHEDULE, **RULES[name], partition_specs=specs)
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
    jax.tree.map(np.testing.assert_array_equal, masks, on_one_device(name))


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
    tx = gp.gradual_prune(SCHEDULE, **fields)
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}
    mask = {"kernel": jax.ShapeDtypeStruct(shape, bool, sharding=sharding)}
    state = gp.GradualPruneState(jax.ShapeDtypeStruct((), jnp.int32), mask)
    program = jax.jit(tx.update).lower(params, state, params).compile().as_text()
    for other in MOVING:
        assert other not in program
    assert max(all_reduced_words(program), default=0) <= words
