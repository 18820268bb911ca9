"""Coupled channels on every mesh: the masks of one device, bit for bit."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.meshes import make_mesh

SCHEDULE = gp.polynomial_schedule(0.6, 0, 4, every=2)
ALLOCATIONS = {
    "uniform": dict(round_to=1),
    "global": dict(round_to=4, allocation="global", min_density=0.2),
    "largest": dict(round_to=1, pool="max"),
}
HEADS, WIDTH = 8, 4


def fn(params, x):
    """A gate, and heads whose widths are one axis with them."""
    gate, value = jnp.split(x @ params["gates"], 2, -1)
    x = jax.nn.silu(gate) * value
    x = jnp.tanh(x @ params["up"] + params["bias"])
    heads = (x @ params["queries"]).reshape(*x.shape[:-1], HEADS, WIDTH)
    heads = heads.reshape(*x.shape[:-1], HEADS * WIDTH)
    return heads @ params["down"]


SHAPES = {
    "gates": (8, 32),
    "up": (16, 24),
    "bias": (24,),
    "queries": (24, HEADS * WIDTH),
    "down": (HEADS * WIDTH, 8),
}
SPECS = {
    "gates": P("x", "y"),
    "up": P("y", "x"),
    "bias": P("x"),
    "queries": P(None, ("x", "y")),
    "down": P(("x", "y"), None),
}


def make_params():
    """Weights with ties among means, one leaf of another dtype."""
    rng = np.random.default_rng(0)
    params = {
        name: np.round(rng.normal(size=shape) * 4).astype(np.float32) / 4
        for name, shape in SHAPES.items()
    }
    params["up"] = params["up"].astype(jnp.bfloat16)
    return params


@functools.cache
def make_link(name, specs=False):
    fields = dict(ALLOCATIONS[name])
    groups = gp.channel_groups(fn, make_params(), jnp.ones((2, 8)))
    pool = fields.pop("pool", "mean")
    structure = gp.CoupledChannels(groups, pool, fields.pop("round_to"))
    return gp.gradual_prune(
        SCHEDULE,
        structure=structure,
        partition_specs=SPECS if specs else None,
        **fields,
    )


def updated(name, params):
    """The masks after the update at step 2, all weights kept before."""
    tx = make_link(name)
    state = jax.jit(tx.init)(params)._replace(count=jnp.int32(2))
    _, state = jax.block_until_ready(jax.jit(tx.update)(params, state, params))
    return state.masks


@functools.cache
def on_one_device(name):
    masks = jax.tree.map(np.asarray, updated(name, make_params()))
    assert any(not mask.all() for mask in jax.tree.leaves(masks))
    return masks


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_masks_are_the_same_sharded_over_eight_devices(name, axis_type):
    mesh = make_mesh(axis_type)
    shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in SPECS.items()}
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh) if explicit else contextlib.nullcontext():
        masks = updated(name, jax.device_put(make_params(), shardings))
    for leaf, mask in masks.items():
        np.testing.assert_array_equal(mask, on_one_device(name)[leaf], err_msg=leaf)
        assert mask.sharding.is_equivalent_to(shardings[leaf], mask.ndim), leaf


@pytest.mark.parametrize("shape", [(1, 8), (8, 1)])
@pytest.mark.parametrize(
    "types",
    [(AxisType.Explicit,) * 2, (AxisType.Explicit, AxisType.Auto)],
    ids=["explicit", "mixed"],
)
def test_a_mesh_axis_of_one_device(shape, types):
    def network(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    rng = np.random.default_rng(0)
    shapes = {"w": (8, 16), "v": (16, 8)}
    params = {name: rng.normal(size=size) for name, size in shapes.items()}
    params = jax.tree.map(jnp.float32, params)
    groups = gp.channel_groups(network, params, jnp.ones((2, 8)))
    structure = gp.CoupledChannels(groups)
    _, expected = gp.prune(params, 0.5, structure=structure)
    mesh = jax.make_mesh(shape, ("x", "y"), axis_types=types)
    placed = jax.device_put(params, NamedSharding(mesh, P("x", "y")))
    _, masks = gp.prune(placed, 0.5, structure=structure)
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name])


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_masks_are_the_same_inside_shard_map(name):
    params = make_params()
    link = make_link(name, specs=True)

    def local(params, masks):
        state = gp.GradualPruneState(jnp.int32(2), masks)
        return link.update(params, state, params)[1].masks

    update = jax.shard_map(
        local, mesh=make_mesh(), in_specs=(SPECS, SPECS), out_specs=SPECS
    )
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), params)
    masks = jax.block_until_ready(jax.jit(update)(params, masks))
    for leaf, mask in masks.items():
        np.testing.assert_array_equal(mask, on_one_device(name)[leaf], err_msg=leaf)
