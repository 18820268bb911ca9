"""Shrink: what changes no output is cut, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import Primitive
from jax.interpreters import mlir

import gradprune_jax as gp
from gradprune_jax.primitives import Elementwise
from tests.networks import KEY, NETWORKS, assert_same, dense, killed, network


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_free_dimension_is_cut(name):
    fn, params, x = network(name)
    smaller, groups = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert not shrunk.unknown
    assert_same(fn, smaller, shrunk, x)
    for group in groups.groups:
        old, new = shrunk.sizes[group.name]
        assert new == (old if group.fixed else old - old // 2), group


@pytest.mark.parametrize("name", ["convolutions", "recurrent", "transformer"])
def test_nothing_is_cut_where_nothing_is_zero(name):
    fn, params, x = network(name)
    shrunk = gp.shrink(fn, params, x)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, shrunk.params))
    assert all(old == new for old, new in shrunk.sizes.values())
    assert jax.tree.all(
        jax.tree.map(np.array_equal, shrunk.fn(params, x), fn(params, x))
    )


def chain(params, x):
    for name in ("a", "b", "c"):
        x = jnp.maximum(x @ params[name], 0)
    return x


def test_a_cut_goes_on_to_a_fixed_point():
    """A channel without a reader leaves one further up without a reader."""
    params = {"a": dense(0, 3, 4), "b": dense(1, 4, 5), "c": dense(2, 5, 2)}
    params["c"] = params["c"].at[2].set(0)
    params["b"] = params["b"].at[1].set(0).at[1, 2].set(1.0)
    shrunk = gp.shrink(chain, params, dense(3, 6, 3))
    assert {k: v.shape for k, v in shrunk.params.items()} == {
        "a": (3, 3),
        "b": (3, 4),
        "c": (4, 2),
    }
    assert_same(chain, params, shrunk, dense(3, 6, 3))


def test_a_constant_is_kept():
    """A column of zeros with a bias is a constant, which the next layer adds."""

    def fn(params, x):
        x = jax.nn.relu(x @ params["w"] + params["b"])
        return x @ params["v"]

    params = {
        "w": dense(0, 3, 4).at[:, 1].set(0),
        "b": dense(1, 4),
        "v": dense(2, 4, 2),
    }
    shrunk = gp.shrink(fn, params, dense(3, 5, 3))
    assert shrunk.params["w"].shape == (3, 4)
    params["b"] = params["b"].at[1].set(0)
    shrunk = gp.shrink(fn, params, dense(3, 5, 3))
    assert shrunk.params["w"].shape == (3, 3)
    assert_same(fn, params, shrunk, dense(3, 5, 3))


def test_a_dimension_keeps_one_index():
    params = {"a": jnp.zeros((3, 4)), "b": dense(1, 4, 5), "c": dense(2, 5, 2)}
    shrunk = gp.shrink(chain, params, dense(3, 6, 3))
    assert all(min(leaf.shape) for leaf in jax.tree.leaves(shrunk.params))
    assert_same(chain, params, shrunk, dense(3, 6, 3))


def test_an_index_that_is_picked_out_is_not_cut():
    """No sum shows that the outputs depend on it."""

    def fn(params, x):
        taps = [x * params["kernel"][i, 0] for i in range(3)]  # a kernel, tap by tap
        hidden = sum(taps) @ params["w"]
        column = hidden[:, 1]
        repeated = hidden[:, 2:3] * jnp.ones(4)
        return column, repeated.sum(1), hidden[:, 3:4].reshape(-1)

    params = {"kernel": dense(0, 3, 1, 4), "w": dense(1, 4, 6)}
    x = dense(2, 5, 4)
    shrunk = gp.shrink(fn, params, x)
    assert shrunk.params["kernel"].shape == (3, 1, 4)
    assert shrunk.params["w"].shape == (4, 3)  # what no output reads goes
    assert_same(fn, params, shrunk, x)


def test_what_has_no_rule_is_fixed_and_named():
    def fn(params, x):
        hidden = x @ params["w"]
        return jnp.fft.rfft(hidden).real @ params["v"]

    params = {"w": dense(0, 3, 8).at[:, 2].set(0), "v": dense(1, 5, 2)}
    x = dense(2, 4, 3)
    shrunk = gp.shrink(fn, params, x)
    assert shrunk.params["w"].shape == (3, 8)
    assert "fft" in shrunk.unknown
    assert "fft" in str(shrunk)
    assert_same(fn, params, shrunk, x)


def test_other_batch_sizes_gradients_and_exports():
    fn, params, x = network("convolutions")
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    more = jax.random.normal(KEY, (9, *x.shape[1:]))
    assert_same(fn, smaller, shrunk, more)
    compiled = jax.jit(shrunk.fn)
    np.testing.assert_allclose(
        compiled(shrunk.params, more), shrunk.fn(shrunk.params, more), atol=1e-5
    )
    gradient = jax.grad(lambda p: jnp.sum(shrunk.fn(p, x) ** 2))(shrunk.params)
    assert jax.tree.all(
        jax.tree.map(lambda g, p: g.shape == p.shape, gradient, shrunk.params)
    )
    one_by_one = jax.vmap(lambda image: shrunk.fn(shrunk.params, image[None])[0])(x)
    np.testing.assert_allclose(one_by_one, fn(smaller, x), atol=1e-4)
    (batch,) = export.symbolic_shape("batch")
    types = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shrunk.params
    )
    image = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    exported = export.export(compiled)(types, image)
    np.testing.assert_allclose(
        exported.call(shrunk.params, more), fn(smaller, more), atol=1e-4
    )


def test_values_that_fn_closes_over_are_cut():
    weights = {"w": dense(0, 3, 8).at[:, :4].set(0), "b": dense(1, 8).at[:4].set(0)}

    def fn(params, x):
        return jnp.tanh(x @ weights["w"] + weights["b"]) @ params["v"]

    params, x = {"v": dense(2, 8, 2)}, dense(3, 5, 3)
    shrunk = gp.shrink(fn, params, x)
    assert shrunk.params["v"].shape == (4, 2)
    assert_same(fn, params, shrunk, x)
    assert_same(fn, params, shrunk, dense(4, 7, 3))


def test_errors_name_the_parameter():
    params, x = (
        {"a": dense(0, 3, 4), "b": dense(1, 4, 5), "c": dense(2, 5, 2)},
        dense(3, 6, 3),
    )
    with pytest.raises(ValueError, match="parameter 'a' is traced"):
        jax.jit(lambda p: gp.shrink(chain, p, x).params)(params)
    for call in (gp.shrink, gp.channel_groups):
        with pytest.raises(ValueError, match="'c' is .*len.*, no array.*partition"):
            call(chain, params | {"c": len}, x)
    with pytest.raises(ValueError, match="parameter 'a' is a shape without values"):
        gp.shrink(chain, jax.eval_shape(lambda: params), x)
    params["a"] = params["a"].at[:, 0].set(0)
    shrunk = gp.shrink(chain, params, x)
    with pytest.raises(ValueError, match=r"'a' has the shape \(3, 4\); .* \(3, 3\)"):
        shrunk.fn(params, x)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def grouped(kernel, x, groups):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


PIECES = {
    "custom_vjp": lambda p, x: doubled(x),
    "remat": lambda p, x: jax.checkpoint(jnp.tanh)(x),
    "cond": lambda p, x: jax.lax.cond(x.sum() > 0, jnp.tanh, lambda x: 2 * x, x),
    "while": lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x), x),
    "while with a bound": lambda p, x: jax.lax.while_loop(
        lambda x: jnp.abs(x).max() < 50, lambda x: 2 * x, x
    ),
    "padding": lambda p, x: jnp.pad(x, ((0, 0), (2, 1)))[:, 2:-1],
    "casts": lambda p, x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "flip": lambda p, x: x[:, ::-1][:, ::-1],
    "einsum": lambda p, x: jnp.einsum("bi,i->bi", x, jnp.ones(8)),
    "dropout": lambda p, x: jnp.where(
        jax.random.bernoulli(jax.random.key(3), 0.7, x.shape), x / 0.7, 0
    ),
    "stacked": lambda p, x: jnp.stack([x, jnp.tanh(x)]).sum(0),
    "unstacked": lambda p, x: sum(jnp.unstack(jnp.stack([x, jnp.tanh(x)]))),
    "tiled": lambda p, x: jnp.tile(x, (3, 2))[4:8, 8:],
    "repeated": lambda p, x: jnp.repeat(x, 2, axis=0)[::2],
    "update": lambda p, x: jnp.zeros((9, 8)).at[:4].set(x)[:4],
    "written rows": lambda p, x: jnp.ones((9, 8)).at[jnp.arange(4)].set(x)[:4],
    "added rows": lambda p, x: jnp.zeros((9, 8)).at[jnp.arange(4)].add(x)[:4],
    "sort of the batch": lambda p, x: jnp.sort(x, axis=0),
    "cumulative sum": lambda p, x: jnp.cumsum(x, axis=0),
    "separate heads": lambda p, x: x.reshape(4, 2, 4).swapaxes(0, 1).swapaxes(0, 1),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_networks(name):
    """Between two layers of which half of the eight units are dead."""

    def fn(params, x):
        x = PIECES[name](params, x @ params["w"])
        return x.reshape(4, 8) @ params["v"]

    dead = np.array([1, 3, 5, 7])
    params = {"w": dense(0, 3, 8).at[:, dead].set(0), "v": dense(1, 8, 2)}
    params["v"] = params["v"].at[dead].set(0)
    x = dense(2, 4, 3)
    shrunk = gp.shrink(fn, params, x)
    assert_same(fn, params, shrunk, x)
    is_fixed = name in ("while with a bound",)
    assert shrunk.params["w"].shape == (3, 8 if is_fixed else 4), shrunk


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_grouped_convolutions(groups):
    def fn(params, x):
        x = jnp.tanh(grouped(params["a"], x, 1))
        x = jnp.tanh(grouped(params["b"], x, groups))
        return grouped(params["c"], x, 1).mean((1, 2))

    params = {
        "a": dense(0, 3, 3, 2, 8),
        "b": dense(1, 3, 3, 8 // groups, 16),
        "c": dense(2, 1, 1, 16, 3),
    }
    x = dense(3, 2, 5, 5, 2)
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert shrunk.params["b"].size <= params["b"].size // 2
    assert_same(fn, smaller, shrunk, x)


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.InstanceNorm, nn.WeightNorm])
def test_other_norms_are_exact(norm):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            if norm is nn.WeightNorm:
                x = nn.WeightNorm(nn.Dense(8))(x)
            elif norm is nn.GroupNorm:
                x = nn.GroupNorm(num_groups=2)(nn.Dense(8)(x))
            else:
                x = nn.InstanceNorm()(nn.Dense(8)(x))
            return nn.Dense(3)(nn.relu(x))

    model, x = Model(), dense(0, 2, 5, 4)
    params = model.init(KEY, x)
    smaller, _ = killed(model.apply, params, x)
    shrunk = gp.shrink(model.apply, smaller, x)
    assert_same(model.apply, smaller, shrunk, x)


def test_a_rule_for_a_primitive_of_ones_own():
    cube = Primitive("cube_of_two")
    cube.def_impl(lambda x, y: x**3 + y)
    cube.def_abstract_eval(lambda x, y: x)
    mlir.register_lowering(
        cube, mlir.lower_fun(lambda x, y: x**3 + y, multiple_results=False)
    )

    def fn(params, x):
        x = x @ params["w"]
        return cube.bind(x, 2 * x) @ params["v"]

    params = {"w": dense(0, 3, 8).at[:, 2].set(0), "v": dense(1, 8, 2)}
    x = dense(2, 4, 3)
    unknown = gp.shrink(fn, params, x)
    assert "cube_of_two" in unknown.unknown
    assert unknown.params["w"].shape == (3, 8)
    shrunk = gp.shrink(fn, params, x, rules={"cube_of_two": Elementwise()})
    assert not shrunk.unknown
    assert shrunk.params["w"].shape == (3, 7)
    assert_same(fn, params, shrunk, x)
    groups = gp.channel_groups(fn, params, x, rules={"cube_of_two": Elementwise()})
    assert len(groups.free) == 1
    with pytest.raises(ValueError, match="'cube_of_two' is 3; it must be a Prim"):
        gp.shrink(fn, params, x, rules={"cube_of_two": 3})


def test_channels_that_are_zero_and_needed_are_named():
    """A constant that is no parameter is added to them, and all are summed."""
    constant = dense(3, 4)

    def fn(params, x):
        hidden = jnp.tanh(x @ params["w"] + constant)
        return hidden.sum(-1), hidden @ params["v"]

    params = {"w": dense(0, 3, 4).at[:, 2].set(0), "v": dense(1, 4, 2).at[2].set(0)}
    x = dense(2, 5, 3)
    shrunk = gp.shrink(fn, params, x)
    assert shrunk.params["w"].shape == (3, 4)
    assert list(shrunk.needed) == ["v[0]"]
    assert "Zeros of v[0] are needed by reduce_sum" in str(shrunk)


def test_the_function_is_traced_once_for_the_types_that_it_was_shrunk_with():
    traces = []

    def fn(params, x):
        traces.append(1)
        return jnp.maximum(x @ params["w"], 0) @ params["v"]

    params = {"w": dense(0, 3, 4).at[:, 1].set(0), "v": dense(1, 4, 2)}
    x = dense(2, 5, 3)
    shrunk = gp.shrink(fn, params, x)
    for _ in range(3):
        assert_same(chain_of_two, params, shrunk, x)
    assert len(traces) == 1
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), shrunk.params)
    assert shrunk.fn(halves, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert len(traces) == 2


def chain_of_two(params, x):
    return jnp.maximum(x @ params["w"], 0) @ params["v"]
