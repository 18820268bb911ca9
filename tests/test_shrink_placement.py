"""Where shrunk parameters lie: on their devices, split as they were, or in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.networks import assert_same, dense


def params_without(*units):
    """Two layers, the first without some of its 16 units."""
    dead = jnp.array(units)
    return {
        "w": dense(0, 8, 16).at[:, dead].set(0),
        "b": dense(1, 16).at[dead].set(0),
        "v": dense(2, 16, 8),
    }


SPECS = {"w": P(None, "model"), "b": P("model"), "v": P("model", None)}
X = dense(3, 8, 8)


def fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def explicit(params, x):
    hidden = jnp.tanh(jnp.einsum("bi,ij->bj", x, params["w"]) + params["b"])
    return jnp.einsum("bi,ij->bj", hidden, params["v"], out_sharding=P("data", None))


@pytest.mark.parametrize(
    ("fn", "kind"), [(fn, AxisType.Auto), (explicit, AxisType.Explicit)]
)
@pytest.mark.parametrize(("dead", "splits"), [((1, 3), True), ((1, 3, 8), False)])
def test_parameters_of_a_mesh(fn, kind, dead, splits):
    """What is left is split as before, where its length can be divided."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(leaf, NamedSharding(mesh, SPECS[name]))
            for name, leaf in params_without(*dead).items()
        }
        x = jax.device_put(X, NamedSharding(mesh, P("data", None)))
        shrunk = gp.shrink(fn, params, x)
        assert shrunk.params["w"].shape == (8, 16 - len(dead))
        for name, leaf in shrunk.params.items():
            has_spec = leaf.sharding.is_equivalent_to(
                NamedSharding(mesh, SPECS[name]), leaf.ndim
            )
            assert has_spec == splits
        assert_same(fn, params, shrunk, x)


def test_parameters_of_another_device():
    device = jax.devices()[3]
    params = jax.device_put(params_without(5), device)
    shrunk = gp.shrink(fn, params, jax.device_put(X, device))
    for leaf in jax.tree.leaves(shrunk.params):
        assert leaf.committed
        assert leaf.sharding == SingleDeviceSharding(device)


def test_numpy_arrays_keep_their_dtype():
    """JAX would narrow them, and wrap integers around."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, float), params_without(5))
    shrunk = gp.shrink(fn, params, X)
    assert {leaf.dtype for leaf in shrunk.params.values()} == {np.dtype(float)}
    assert {type(leaf) for leaf in shrunk.params.values()} == {np.ndarray}
    counts = {"w": np.zeros((8, 16), int), "b": 2**40 + np.arange(16)}
    counts = shrunk.cut(counts | {"v": np.zeros((16, 8), int)})
    assert counts["b"].tolist() == [2**40 + i for i in range(16) if i != 5]


def test_a_layout_is_no_obstacle():
    """It is asked for again where nothing was cut."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,))

    def laid_out(params, x):
        hidden = jnp.tanh(x @ params["w"] + params["b"])
        hidden = jax.lax.with_sharding_constraint(
            hidden, NamedSharding(mesh, P(None, "model"))
        )
        outputs = NamedSharding(mesh, P("model", None))
        return jax.lax.with_sharding_constraint(hidden @ params["v"], outputs)

    params = params_without(5)
    shrunk = gp.shrink(laid_out, params, X)
    assert shrunk.params["w"].shape == (8, 15)
    assert not shrunk.unknown
    assert_same(laid_out, params, shrunk, X)
    smaller = jax.make_jaxpr(shrunk.fn)(shrunk.params, X)
    assert str(smaller).count("sharding_constraint[") == 1
