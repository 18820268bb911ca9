"""Shrink: what changes no output is cut, and nothing else."""

import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import gradprune_jax as gp
from gradprune_jax._tree import named_leaves
from tests.helpers import enable_x64

KEY = jax.random.key(0)


def dense(seed, *shape):
    """Weights of which none is zero."""
    return jax.random.uniform(jax.random.key(seed), shape, minval=0.1, maxval=1.0)


def killed(fn, params, *inputs, share=0.5):
    """Zeros in a share of the units of every group that is not fixed."""
    leaves = {"/".join(leaf.path): leaf.value for leaf in named_leaves(params)}
    groups = gp.channel_groups(fn, params, *inputs)
    for group in groups.groups:
        for place in range(0 if group.fixed else int(group.size * share)):
            for path, *index in places_of(group, place):
                leaves[path] = leaves[path].at[tuple(index)].set(0)
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values())), groups


def assert_same(fn, params, shrunk, *inputs, tolerance=1e-5):
    wanted, found = fn(params, *inputs), shrunk.fn(shrunk.params, *inputs)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert one.dtype == other.dtype
        scale = float(jnp.max(jnp.abs(one.astype(jnp.float32)))) or 1.0
        np.testing.assert_allclose(
            np.asarray(one, np.float32) / scale,
            np.asarray(other, np.float32) / scale,
            atol=tolerance,
        )


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(16)(x))
        return nn.Dense(5)(nn.silu(nn.Dense(12)(x)))


class Convolutions(nn.Module):
    """With pooling and a flattened image."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.relu(nn.Dense(10)(x)))


class Residual(nn.Module):
    """Residual trunks and BatchNorm."""

    train: bool = False

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.BatchNorm, use_running_average=not self.train)
        x = norm()(nn.Conv(8, (3, 3))(x))
        for _ in range(2):
            y = nn.relu(norm()(nn.Conv(6, (3, 3))(x)))
            x = nn.relu(x + norm()(nn.Conv(8, (3, 3))(y)))
        x = norm()(nn.Conv(12, (1, 1), strides=(2, 2))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Transformer(nn.Module):
    norm: type = nn.LayerNorm

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 16)(tokens)
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(self.norm()(x))
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(24)(self.norm()(x))))
        return nn.Dense(7)(self.norm()(x))


class Separable(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.Conv(12, (1, 1))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Concatenated(nn.Module):
    """As DenseNet and U-Net have it, with a gated unit."""

    @nn.compact
    def __call__(self, x):
        one, other = nn.Dense(6)(x), nn.relu(nn.Dense(8)(x))
        x = jnp.concatenate([one, other], -1)
        gate, value = jnp.split(nn.Dense(20)(x), 2, -1)
        return nn.Dense(3)(nn.sigmoid(gate) * value)


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(8))(x)
        x = nn.RNN(nn.GRUCell(6))(x)
        return nn.Dense(3)(x[:, -1])


NETWORKS = {
    "perceptron": (Perceptron(), (4, 7)),
    "convolutions": (Convolutions(), (4, 8, 8, 1)),
    "residual": (Residual(), (4, 8, 8, 3)),
    "batch norm in training": (Residual(train=True), (4, 8, 8, 3)),
    "separable": (Separable(), (4, 8, 8, 3)),
    "concatenated": (Concatenated(), (4, 7)),
    "recurrent": (Recurrent(), (4, 5, 7)),
    "transformer": (Transformer(), None),
    "transformer with RMSNorm": (Transformer(nn.RMSNorm), None),
}


def network(name):
    model, shape = NETWORKS[name]
    x = (
        jax.random.randint(KEY, (4, 9), 0, 11)
        if shape is None
        else jax.random.normal(KEY, shape)
    )
    variables = model.init(KEY, x)
    rest = {kind: own for kind, own in variables.items() if kind != "params"}
    flat, tree = jax.tree.flatten(variables["params"])
    flat = [dense(i, *leaf.shape) - 0.5 for i, leaf in enumerate(flat)]

    def fn(params, x):
        mutable = ["batch_stats"] if getattr(model, "train", False) else False
        out = model.apply({"params": params, **rest}, x, mutable=mutable)
        return out[0] if mutable else out

    return fn, jax.tree.unflatten(tree, flat), x


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


def test_nnx_models_by_split_and_merge():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.last = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def fn(params, x):
        return nnx.merge(graph, params, rest)(x)

    x = dense(0, 3, 4)
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert shrunk.params["first"]["kernel"].shape == (4, 4)
    assert_same(fn, smaller, shrunk, x)


def test_errors_name_the_parameter():
    params, x = (
        {"a": dense(0, 3, 4), "b": dense(1, 4, 5), "c": dense(2, 5, 2)},
        dense(3, 6, 3),
    )
    with pytest.raises(ValueError, match="parameter 'a' is traced"):
        jax.jit(lambda p: gp.shrink(chain, p, x).params)(params)
    params["a"] = params["a"].at[:, 0].set(0)
    shrunk = gp.shrink(chain, params, x)
    with pytest.raises(ValueError, match=r"'a' has the shape \(3, 4\); .* \(3, 3\)"):
        shrunk.fn(params, x)


def layer(kind, params, x):
    """One layer of a random network, from four features to four."""
    match kind:
        case "dense":
            return jnp.tanh(x @ params["w"] + params["b"])
        case "residual":
            return x + nn.gelu(x @ params["w"] + params["b"]) @ params["v"]
        case "gate":
            gate, value = jnp.split(x @ params["wide"], 2, -1)
            return nn.sigmoid(gate) * value
        case "concatenate":
            return jnp.concatenate([x, nn.silu(x @ params["w"])], -1) @ params["tall"]
        case "heads":
            heads = (x @ params["w"]).reshape(*x.shape[:-1], 2, 2)
            return jnp.einsum("...hd,hdo->...o", jnp.tanh(heads), params["heads"])
        case "norm":
            mean = x.mean(-1, keepdims=True)
            # With (x - mean)^2 no index could go: it adds mean^2 where x is zero.
            variance = (x**2).mean(-1, keepdims=True) - mean**2
            deviation = jnp.sqrt(variance + 0.1)
            return (x - mean) / deviation * params["b"] + params["c"]
        case "scan":
            return jax.lax.scan(
                lambda x, w: (x + jnp.tanh(x @ w), None), x, params["stack"]
            )[0]
        case "max":
            return x / (1 + jnp.max(jnp.abs(x), -1, keepdims=True)) @ params["w"]


SHAPES = {
    "w": (4, 4),
    "v": (4, 4),
    "b": (4,),
    "c": (4,),
    "wide": (4, 8),
    "tall": (8, 4),
    "heads": (2, 2, 4),
    "stack": (3, 4, 4),
}
LAYERS = ["dense", "residual", "gate", "concatenate", "heads", "norm", "scan", "max"]


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4), st.integers(0, 10_000)
)
def test_exactly_what_changes_no_output_is_cut(kinds, seed):
    """Against brute force: each unit of each group set to zero alone."""
    rng = np.random.default_rng(seed)
    params = {
        f"{number}": {
            name: rng.uniform(0.2, 1, shape) * rng.choice([-1, 1], shape)
            for name, shape in SHAPES.items()
        }
        for number in range(len(kinds))
    }
    params["first"] = rng.uniform(0.2, 1, (3, 4))
    params["last"] = rng.uniform(0.2, 1, (4, 2))

    def fn(params, x):
        x = x @ params["first"]
        for number, kind in enumerate(kinds):
            x = layer(kind, params[f"{number}"], x)
        return x @ params["last"]

    with enable_x64():
        x = jnp.asarray(rng.normal(size=(5, 3)))
        groups = gp.channel_groups(fn, params, x).groups
        leaves = {"/".join(leaf.path): leaf.value for leaf in named_leaves(params)}
        for group in groups:
            # The first is left alive: nothing is said of sums that no output needs.
            for place in range(1, 0 if group.fixed else group.size):
                for member in places_of(group, place):
                    if rng.random() < 0.45:
                        leaves[member[0]][member[1:]] = 0
        compiled = jax.jit(fn)
        shrunk = gp.shrink(fn, params, x)
        wanted = np.asarray(compiled(params, x))
        found = np.asarray(shrunk.fn(shrunk.params, x))
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
        for group in groups:
            needed = 0
            for place in range(0 if group.fixed else group.size):
                changed = {path: leaf.copy() for path, leaf in leaves.items()}
                for member in places_of(group, place):
                    changed[member[0]][member[1:]] = 0
                tree = jax.tree.unflatten(
                    jax.tree.structure(params), list(changed.values())
                )
                change = np.abs(np.asarray(compiled(tree, x)) - wanted).max()
                needed += change > 1e-12
            least = group.size if group.fixed else max(needed, 1)
            assert shrunk.sizes[group.name] == (group.size, least), group


def places_of(group, place):
    """Where a unit lies: path and index."""
    for (path, axis), units in zip(group.members, group.indices, strict=True):
        for index in units[place]:
            yield (path, *[slice(None)] * axis, index)


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
    is_fixed = name in ("while with a bound", "update")
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


def test_a_batch_size_that_is_not_known():
    fn, params, x = network("transformer")
    smaller, _ = killed(fn, params, x)
    (batch,) = export.symbolic_shape("batch")
    tokens = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    shrunk = gp.shrink(fn, smaller, tokens)
    assert_same(fn, smaller, shrunk, x)
    known = gp.shrink(fn, smaller, x)
    assert shrunk.sizes == known.sizes


def test_equinox_modules_by_partition():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, width_size=8, depth=2, key=KEY)
    params, static = eqx.partition(model, eqx.is_array)

    def fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    x = dense(0, 5, 3)
    smaller, _ = killed(fn, params, x)
    shrunk = gp.shrink(fn, smaller, x)
    assert shrunk.params.layers[1].weight.shape == (4, 4)
    assert_same(fn, smaller, shrunk, x)
