"""Networks that are made smaller, and what compares them with their originals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from gradprune_jax._tree import named_leaves

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


def places_of(group, unit):
    """Where a unit lies: path and index."""
    for (path, axis), indices in zip(group.members, group.indices, strict=True):
        for sequence in indices:
            if sequence[unit] >= 0:
                yield (path, *[slice(None)] * axis, sequence[unit])


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
