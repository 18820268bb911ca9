"""Shrink against brute force: exactly what changes no output is cut."""

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from gradprune_jax._tree import named_leaves
from tests.helpers import enable_x64
from tests.networks import places_of


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
            variance = (x**2).mean(-1, keepdims=True) - mean**2
            deviation = jnp.sqrt(variance + 0.1)
            return (x - mean) / deviation * params["b"] + params["c"]
        case "norm in two passes":  # a variance that adds mean^2 where x is zero
            deviation = jnp.sqrt(jnp.var(x, -1, keepdims=True) + 0.1)
            return (x - x.mean(-1, keepdims=True)) / deviation * params["b"]
        case "scan":
            return jax.lax.scan(
                lambda x, w: (x + jnp.tanh(x @ w), None), x, params["stack"]
            )[0]
        case "while":
            return jax.lax.fori_loop(
                0, 2, lambda _, x: x + jnp.tanh(x @ params["w"]), x
            )
        case "cond":  # both branches, so that one input shows what both need
            branches = lambda x: jnp.sin(x) @ params["w"], jnp.tanh
            return sum(
                jax.lax.cond(is_first, *branches, x) for is_first in (True, False)
            )
        case "attention":
            scores = (x @ params["w"]) @ (x @ params["v"]).T
            return jax.nn.softmax(scores) @ x
        case "convolution":
            return jnp.tanh(convolved(x, params["kernel"], 1))
        case "depthwise":
            return convolved(x, params["depthwise"], 4) + params["b"]
        case "taps":
            later = jnp.concatenate([x[1:], x[:1]])
            return jnp.sin(x * params["taps"][0] + later * params["taps"][1])
        case "scatter":
            return jnp.zeros_like(x).at[jnp.array([0, 2, 0, 1, 4])].add(x * params["b"])
        case "gather":
            return params["table"][jnp.array([2, 0, 0, 1, 2])] * x
        case "shuffle":
            pairs = (x @ params["w"]).reshape(-1, 2, 2).swapaxes(1, 2)
            return pairs.reshape(x.shape)
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
    "table": (3, 4),
    "kernel": (3, 4, 4),
    "depthwise": (3, 1, 4),
    "taps": (2, 4),
}
LAYERS = [
    *("dense", "residual", "gate", "concatenate", "heads", "norm", "scan", "max"),
    *("while", "cond", "attention", "convolution", "depthwise", "taps", "scatter"),
    *("gather", "shuffle", "norm in two passes"),
]


def convolved(x, kernel, groups):
    """A convolution over the rows."""
    return jax.lax.conv_general_dilated(
        x[None],
        kernel,
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )[0]


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
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
