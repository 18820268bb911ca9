"""Programs of which a careless rule would cut too much, or fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.networks import assert_same

X = jnp.ones((2, 4))
# One of five hidden units is dead for want of a producer.
W = jnp.ones((4, 5)).at[:, 1].set(0)
V = jnp.ones((5, 2))
HIDDEN = {"w": W, "v": V}
SIGNS = {"a": jnp.ones(5).at[1].set(0), "v": V}


def through_ref(params, x):
    ref = jax.new_ref(jnp.zeros((2, 5)))
    ref[...] = x @ params["w"]
    return ref[...] @ params["v"]


def through_shard_map(params, x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("i",))
    sin = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    return sin(x @ params["w"]) @ params["v"]


def loops_of_their_own(params, x):
    def halved(row):
        return lax.while_loop(
            lambda carried: jnp.abs(carried).sum() > 0.5,
            lambda carried: carried * 0.5,
            row @ params["w"],
        )

    return jax.vmap(halved)(x) @ params["v"]


def turns_of_each_channel(params, x):
    """No sum reads the channels' numbers of turns, which must be cut as they are."""

    def grown(channel, turns):
        return lax.while_loop(
            lambda carried: carried[0] < turns,
            lambda carried: (carried[0] + 1, carried[1] * 1.5),
            (0, channel),
        )[1]

    hidden = jax.vmap(grown)((x @ params["w"])[0], jnp.arange(5))
    return hidden @ params["v"]


def turns_that_are_not_read(params, x):
    def grown(row):
        return lax.while_loop(
            lambda carried: jnp.abs(carried[1]).sum() < 50,
            lambda carried: (carried[0] + 1, carried[1] * 1.5),
            (0, row),
        )[1]

    return jax.vmap(grown)(x @ params["w"]) @ params["v"]


def a_chain_of_pairs(params, x):
    """Index (i, j) of one square is that of another, and so are i, j and k."""
    a, b, c = (x @ params[name] for name in "abc")

    def corner(one, other):
        return jnp.einsum("bi,bj->bij", one, other).reshape(-1, 9)[:, ::4]

    # The units of c have larger numbers than those of b.
    joined = corner(a, c) + corner(c, b)
    return joined @ params["v"], jnp.tanh(b) @ params["z"]


def one_over_nothing(params, x):
    """Infinite if the hidden units that are not read are left out."""
    return x + (1 / (jax.nn.relu(x @ params["w"]) @ params["u"])) @ params["v"]


def dilated_windows(params, x):
    windows = lax.reduce_window(
        x[0, 0] * params["k"],
        -jnp.inf,
        lax.max,
        (2, 1),
        (1, 1),
        ((1, 1), (0, 0)),
        window_dilation=(10, 1),
    )
    return jnp.maximum(windows, -7) @ params["v"]


def diagonal_of_a_square(params, x):
    """Each index of the product has the same unit twice."""
    hidden = x @ params["w"]
    square = (hidden[:, :, None] * hidden[:, None]).reshape(-1, 16)
    corner = square[:, ::5].reshape(-1, 2, 2)
    return jnp.einsum("bij,ijo->bo", corner, params["v"]) + hidden @ params["z"]


CASES = {
    "a reference": (through_ref, HIDDEN, X),
    "a mesh of its own": (through_shard_map, HIDDEN, X),
    "loops under vmap": (loops_of_their_own, HIDDEN, X),
    "turns of each channel under vmap": (turns_of_each_channel, HIDDEN, X),
    "turns that are not read": (turns_that_are_not_read, HIDDEN, X),
    "a chain of pairs": (
        a_chain_of_pairs,
        {name: jnp.ones((4, 3)) for name in "abc"}
        | {"v": jnp.ones((3, 2)).at[1].set(0), "z": jnp.ones((3, 2))},
        X,
    ),
    "a variance, whose program has a NaN": (
        lambda p, x: (x @ p["w"]) / (x @ p["w"]).var(-1, keepdims=True) @ p["v"],
        HIDDEN,
        X,
    ),
    "a dead branch": (
        one_over_nothing,
        {
            "w": jnp.ones((4, 2)).at[:, 0].set(-1),
            "u": jnp.ones((2, 3)),
            "v": jnp.zeros((3, 4)),
        },
        X,
    ),
    "a function applied in place": (
        lambda p, x: (x @ p["w"]).at[jnp.array([0])].apply(jnp.cos) @ p["v"],
        HIDDEN,
        X,
    ),
    "the product of nothing": (
        lambda p, x: jnp.prod((x @ p["w"])[:0], 0) @ p["v"],
        HIDDEN,
        X,
    ),
    "the largest of nothing": (
        lambda p, x: jnp.max((x @ p["w"])[:0], 0, initial=-1.0) @ p["v"],
        HIDDEN,
        X,
    ),
    "rows of nothing": (
        lambda p, x: jnp.concatenate([x, p["e"].reshape(0, 4) @ p["u"]]),
        {"e": jnp.zeros((0, 6)), "u": jnp.ones((4, 4)).at[1].set(0)},
        X,
    ),
    "the angle of zeros": (
        lambda p, x: jnp.arctan2(x[:, :1] * p["a"], x[:, :1] * p["a"]) @ p["v"],
        SIGNS,
        -X,
    ),
    "the sign of zero": (
        lambda p, x: jnp.signbit(x[:, :1] * p["a"]).astype(jnp.float32) @ p["v"],
        SIGNS,
        -X,
    ),
    "integers over zero": (
        lambda p, x: (x[:, :1] * lax.div(p["a"], p["a"])) @ p["v"],
        {"a": jnp.array([1, 0, 1, 1, 1]), "v": V},
        X,
    ),
    "windows in the padding": (
        dilated_windows,
        {"k": jnp.ones((9, 5)).at[:, 1].set(0), "v": V},
        X,
    ),
    "the diagonal of a square": (
        diagonal_of_a_square,
        {
            "w": jnp.ones((4, 4)),
            "v": jnp.ones((2, 2, 2)).at[0].set(0),
            "z": jnp.ones((4, 2)),
        },
        X,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_the_same(name):
    fn, params, x = CASES[name]
    if name == "a reference" and not hasattr(jax, "new_ref"):
        pytest.skip("this JAX has no references")
    with jax.debug_nans(True):  # what is found out about NaN is no fault of the model
        shrunk = gp.shrink(fn, params, x)
    assert_same(fn, params, shrunk, x)


MATRICES = [jnp.eye(8).at[:, :3].set(0), jnp.ones((8, 8)), jnp.ones((8, 8)) * 0.1]


def one_more_constant(params, x):
    if x.shape[0] > 1:
        x = x - 1.0
    for matrix in MATRICES:
        x = jax.jit(lambda x, matrix=matrix: jnp.tanh(x @ matrix))(x)
    return x @ params["w"]


def another_order(params, x):
    for matrix in MATRICES if x.shape[0] > 1 else MATRICES[::-1]:
        x = jnp.tanh(x @ matrix)
    return x @ params["w"]


def a_mask_of_positions(params, x):
    if x.shape[0] > 1:
        x = jnp.asarray(np.tri(x.shape[0], dtype=np.float32)) @ x
    for matrix in MATRICES:
        x = jnp.tanh(x @ matrix)
    return x @ params["w"]


@pytest.mark.parametrize("fn", [one_more_constant, another_order, a_mask_of_positions])
def test_another_batch_size_may_be_another_program(fn):
    """Constants are told by what they are in it, not by their order."""
    params = {"w": jnp.ones((8, 2))}
    shrunk = gp.shrink(fn, params, jnp.ones((2, 8)))
    for batch in (1, 2, 5):
        x = jax.random.normal(jax.random.key(batch), (batch, 8))
        assert_same(fn, params, shrunk, x)


def test_a_longer_input_reads_more_of_a_table():
    def fn(params, x):
        x = x + params["positions"][: x.shape[0]]
        return jnp.tanh(x @ params["w"]) @ params["v"]

    params = {"positions": jnp.ones((8, 4)), **HIDDEN}
    shrunk = gp.shrink(fn, params, X)
    assert shrunk.params["w"].shape == (4, 4)
    assert shrunk.params["positions"].shape == (8, 4)
    assert_same(fn, params, shrunk, jnp.ones((6, 4)))


def test_heads_and_their_widths_are_two_groups():
    """All three projections in one matrix, as many models have it."""
    heads, width = 2, 6
    rng = np.random.default_rng(0)

    def fn(params, x):
        batch, time, _ = x.shape
        query, key, value = (
            part.reshape(batch, time, heads, width)
            for part in jnp.split(x @ params["qkv"], 3, -1)
        )
        scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key))
        mixed = jnp.einsum("bhts,bshd->bthd", scores, value)
        return mixed.reshape(batch, time, heads * width) @ params["out"]

    params = {
        "qkv": jnp.asarray(rng.normal(size=(4, 3 * heads * width)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(heads * width, 4)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(1, 5, 4)), jnp.float32)
    groups = gp.channel_groups(fn, params, x)
    assert sorted(group.size for group in groups.free) == [2, 6, 6]
    pruned, _ = gp.prune(params, 0.5, structure=gp.CoupledChannels(groups))
    shrunk = gp.shrink(fn, pruned, x)
    assert shrunk.params["qkv"].shape == (4, 9)
    assert shrunk.params["out"].shape == (3, 4)
    assert np.abs(fn(pruned, x)).max() > 0
    assert_same(fn, pruned, shrunk, x)


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (
            lambda p, x: lax.scan(
                lambda c, a: (jnp.tanh(c + a @ p["w"]), c @ p["v"]), jnp.zeros(5), x
            )[1],
            "b, 4",
        ),
        (lambda p, x: jnp.tanh((x @ p["w"]).reshape(-1, 5)) @ p["v"], "b, 7, 4"),
    ],
)
def test_lengths_that_are_not_known(fn, shape):
    x = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
    shrunk = gp.shrink(fn, HIDDEN, x)
    assert shrunk.params["w"].shape == (4, 4)
    exported = export.export(jax.jit(shrunk.fn))(shrunk.params, x)
    known = jnp.ones([3 if name == "b" else int(name) for name in shape.split(", ")])
    np.testing.assert_allclose(
        exported.call(shrunk.params, known), fn(HIDDEN, known), rtol=1e-5
    )


def test_an_optimizer_of_which_optax_cannot_tell_the_parts():
    shrunk = gp.shrink(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], HIDDEN, X)
    tx = optax.lbfgs(0.1)
    with pytest.raises(ValueError, match=r"shrunk\.cut\(part\)"):
        gp.shrink_opt_state(tx, tx.init(HIDDEN), shrunk)
