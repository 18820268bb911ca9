"""Pruning with inputs: what can't be done is refused by name, before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradprune_jax as gp
from tests.calibration import inputs_like, weights_like

X = inputs_like(0, 20, 8)
PARAMS = {"kernel": weights_like(0, 8, 8)}
TWO = {"a": PARAMS, "b": PARAMS}
TABLE = {"embedding": weights_like(1, 10, 8)}
TOKENS = jnp.arange(6)


def linear(params, x):
    return x @ params["kernel"]


def repeated(params, x):
    return jax.lax.scan(lambda c, _: (c @ params["kernel"], None), x, length=2)[0]


def scan_over_both(params, x):
    def turn(carried, kernel):
        return carried @ kernel + carried @ params["b"]["kernel"], None

    return jax.lax.scan(turn, x, params["a"]["kernel"])[0]


def carried(params, x):
    def turn(kernel, row):
        return kernel * 2, row @ kernel

    return jax.lax.scan(turn, params["kernel"], x)


def returned(params, x):
    _, kernels = jax.lax.scan(lambda c, w: (c, w[None]), 0.0, params["kernel"])
    return x @ kernels[:, 0]


def nested(params, x):
    def inner(state, _):
        return jnp.tanh(state @ params["kernel"]), None

    def outer(state, _):
        return jax.lax.scan(inner, state, length=2)[0], None

    return jax.lax.scan(outer, x, length=2)[0]


def one_expert_of_three(params, x):
    return x @ params["kernel"][0] + x @ params["kernel"][2]


def one_expert_twice(params, x):
    return x @ params["kernel"][0] @ params["kernel"][0] + x @ params["kernel"][1]


UNREADABLE = {
    "tied": (
        lambda p, t: p["embedding"][t] @ p["embedding"].T,
        TABLE,
        TOKENS,
        "'embedding': it is read more than once, by gather at .* and by dot_general",
    ),
    "looked up": (
        lambda p, t: p["embedding"][t],
        TABLE,
        TOKENS,
        "'embedding': it goes into gather at .*, which is no product with inputs",
    ),
    "twice": (
        lambda p, x: linear(p, linear(p, x)),
        PARAMS,
        X,
        "'kernel': it is read more than once, by dot_general at .* and by dot_general",
    ),
    "a penalty": (
        lambda p, x: linear(p, x).sum() + (p["kernel"] ** 2).sum(),
        PARAMS,
        X,
        "read more than once",
    ),
    "unused": (
        lambda p, x: linear(p["a"], x),
        TWO,
        X,
        "'b/kernel': no output depends on it",
    ),
    "a branch": (
        lambda p, x: jax.lax.cond(x.sum() > 0, lambda: linear(p, x), lambda: x),
        PARAMS,
        X,
        "it goes into cond",
    ),
    "while": (
        lambda p, x: jax.lax.while_loop(
            lambda c: c.sum() < 0, lambda c: linear(p, c), x
        ),
        PARAMS,
        X,
        "it goes into while",
    ),
    "weights": (
        lambda p, x: x @ (p["a"]["kernel"] @ p["b"]["kernel"]),
        TWO,
        X,
        "'a/kernel': it goes into dot_general at .*, which puts weights together\n"
        "  'b/kernel'",
    ),
    "scaled": (lambda p, x: x @ (2 * p["kernel"]), PARAMS, X, "it goes into mul"),
    "no input": (
        lambda p, x: x + jnp.ones((1, 8)) @ p["kernel"],
        PARAMS,
        X,
        "is no product with inputs",
    ),
    "in every layer": (
        scan_over_both,
        {"a": {"kernel": weights_like(0, 3, 8, 8)}, "b": PARAMS},
        X,
        "'b/kernel': it goes into scan at .*, which reads it in every layer",
    ),
    "carried": (carried, PARAMS, X, "which changes it from turn to turn"),
    "returned": (returned, PARAMS, X, "which returns it"),
    "experts": (
        one_expert_of_three,
        {"kernel": weights_like(0, 3, 8, 8)},
        X,
        "'kernel': it is read more than once, by dot_general at .* and by dot_general",
    ),
    "an expert twice": (
        one_expert_twice,
        {"kernel": weights_like(0, 2, 8, 8)},
        X,
        "'kernel': it is read more than once",
    ),
    "half of it": (
        lambda p, x: x @ p["kernel"][:, :4],
        PARAMS,
        X,
        "'kernel': it is read in part, by dot_general",
    ),
    "one input": (
        lambda p, x: x[:, :1] @ p["kernel"],
        {"kernel": weights_like(0, 1, 8)},
        X,
        "which has one input alone for each output",
    ),
    "complex": (
        lambda p, x: (x + 1j * x) @ p["kernel"],
        PARAMS,
        X,
        "which multiplies it by complex numbers",
    ),
    "nested loops": (nested, PARAMS, X, "it goes into scan"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("prune", [True, False], ids=["prune", "norms"])
def test_a_weight_that_one_product_alone_does_not_read(name, prune):
    fn, params, x, message = UNREADABLE[name]
    with pytest.raises(ValueError, match=message):
        if prune:
            gp.prune_calibrated(fn, params, [x], 0.5)
        else:
            gp.input_norms(fn, params, [x])


def test_the_same_weights_in_every_turn_are_no_fault():
    _, masks = gp.prune_calibrated(repeated, PARAMS, [X], 0.5)
    assert (np.asarray(masks["kernel"]).sum(0) == 4).all()


def test_what_can_not_be_read_is_left_dense_by_where():
    fn, _, tokens, _ = UNREADABLE["tied"]
    params = TABLE | {"kernel": PARAMS["kernel"]}

    def with_layer(params, t):
        return fn(params, t) @ params["embedding"] @ params["kernel"]

    schedule = gp.one_shot_schedule(0.5, 0)
    by_where = gp.prune_calibrated(with_layer, params, [tokens], 0.5, where="kernel")
    by_rule = gp.prune_calibrated(
        with_layer,
        params,
        [tokens],
        [gp.Rule(None, where="embedding"), gp.Rule(schedule)],
    )
    for found, masks in (by_where, by_rule):
        np.testing.assert_array_equal(found["embedding"], params["embedding"])
        assert np.mean(np.asarray(found["kernel"]) == 0) == 0.5
        assert len(jax.tree.leaves(masks)) == 1


ARGUMENTS = {
    "one array": (dict(batches=X), "batches is one ndarray; give a list"),
    "a dict": (dict(batches={"x": X}), "batches is one dict"),
    "none": (dict(batches=None), "batches is None"),
    "empty": (dict(batches=[]), "batches is empty"),
    "no samples": (dict(batches=[X[:0]]), "a batch has no samples"),
    "nan": (dict(batches=[X * np.nan]), "the inputs of 'kernel' are not finite"),
    "huge": (dict(batches=[X * 1e30]), "too large for float32"),
    "sparsity": (dict(sparsity=1.5), "sparsity is 1.5"),
    "dense rules": (dict(sparsity=[gp.Rule(None)]), "none has a schedule"),
    "no match": (dict(where="nope"), "matches no parameter"),
    "class": (dict(method=gp.Wanda), "method is <class"),
    "name": (dict(method="wanda"), "method is 'wanda'"),
    "structure": (dict(structure=gp.Block((2, 2))), "unstructured or in groups of NM"),
    "outputs": (
        dict(structure=gp.NM(2, 4, axis=1)),
        "lie along axis 1 of 'kernel', whose inputs lie along axis 0",
    ),
    "groups": (dict(structure=gp.NM(1, 3), sparsity=2 / 3), "do not divide axis"),
    "another sparsity": (dict(structure=gp.NM(2, 4), sparsity=0.75), "give 0.5"),
    "shapes": (
        dict(params={"kernel": jax.ShapeDtypeStruct((8, 8), np.float32)}),
        "'kernel' is a shape without values",
    ),
    "a shape": (
        dict(batches=[jax.ShapeDtypeStruct((4, 8), np.float32)]),
        "batch 0 has .*, which is no array",
    ),
    "text": (dict(batches=[{"x": X, "name": "a"}]), "batch 0 has 'a', which is no"),
    "no function": (dict(fn=None), "fn is None"),
    "no array": (dict(params=PARAMS | {"act": "relu"}), "'act' is 'relu', no array"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_refused(name):
    given, message = ARGUMENTS[name]
    arguments = dict(fn=linear, params=PARAMS, batches=[X], sparsity=0.5) | given
    fn, params, batches, sparsity = (
        arguments.pop(key) for key in ("fn", "params", "batches", "sparsity")
    )
    with pytest.raises(ValueError, match=message):
        gp.prune_calibrated(fn, params, batches, sparsity, **arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(allocation="global"), "allocation is 'global'"),
        (dict(score=gp.Random(0)), "score is Random"),
        (dict(min_per_channel=1), "min_per_channel is 1"),
    ],
)
def test_rules_that_have_no_meaning_here(fields, message):
    rule = gp.Rule(gp.one_shot_schedule(0.5, 0), **fields)
    with pytest.raises(ValueError, match=message):
        gp.prune_calibrated(linear, PARAMS, [X], rule)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(damping=-1.0), "damping is -1.0"),
        (dict(damping=np.nan), "damping is nan"),
        (dict(damping="0.01"), "damping is '0.01'"),
        (dict(block_size=0), "block_size is 0"),
    ],
)
def test_settings_of_sparse_gpt(fields, message):
    with pytest.raises(ValueError, match=message):
        gp.SparseGPT(**fields)


def test_traced_parameters_and_sparsities():
    with pytest.raises(ValueError, match="'kernel' is traced; call prune_calibrated"):
        jax.jit(lambda p: gp.prune_calibrated(linear, p, [X], 0.5))(PARAMS)
    with pytest.raises(ValueError, match="'kernel' is traced; call input_norms"):
        jax.jit(lambda p: gp.input_norms(linear, p, [X]))(PARAMS)
    with pytest.raises(ValueError, match="the sparsity is traced"):
        jax.jit(lambda s: gp.prune_calibrated(linear, PARAMS, [X], s))(0.5)
    with pytest.raises(ValueError, match="batch 0 is traced; call prune_calibrated"):
        jax.jit(lambda x: gp.prune_calibrated(linear, PARAMS, [x], 0.5))(X)
    with pytest.raises(ValueError, match="fn closes over a traced value"):
        jax.jit(
            lambda s: gp.prune_calibrated(
                lambda p, x: linear(p, s * x), PARAMS, [X], 0.5
            )
        )(2.0)


def test_batches_for_which_the_order_differs():
    def fn(params, x):
        first, second = ("a", "b") if len(x) == 20 else ("b", "a")
        return linear(params[second], linear(params[first], x))

    with pytest.raises(ValueError, match="in another order"):
        gp.prune_calibrated(fn, TWO, [X, X[:5]], 0.5)

    def transposed(params, x):
        kernel = params["kernel"]
        return x @ (kernel if len(x) == 20 else kernel.T)

    with pytest.raises(ValueError, match="or along other axes"):
        gp.input_norms(transposed, PARAMS, [X, X[:5]])


def test_groups_of_n_of_m_over_the_edge_of_a_layer():
    def fn(params, x):
        kernels = params["kernel"].reshape(2, 6, 6)
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, kernels)[0]

    params = {"kernel": weights_like(0, 12, 6)}
    for method in (gp.Wanda(), gp.SparseGPT()):
        with pytest.raises(ValueError, match="lie along axis 0 of 'kernel'"):
            gp.prune_calibrated(
                fn, params, [X[:, :6]], 0.5, structure=gp.NM(2, 4), method=method
            )


class Returning(gp.CalibratedMethod):
    def __init__(self, pruned, mask):
        self.returned = pruned, mask

    def statistic(self, inputs):
        return jnp.zeros(())

    def prune(self, weights, statistic, target):
        return self.returned


@pytest.mark.parametrize(
    ("pruned", "mask", "message"),
    [
        (np.ones((1, 8, 8)), np.ones((1, 8, 8), np.float32), "a mask of float32"),
        (np.ones((8, 8)), np.ones((1, 8, 8), bool), r"a matrix of shape \(8, 8\)"),
        (np.ones((1, 8, 8)), np.ones((1, 1, 8), bool), r"a mask of shape \(1, 1, 8\)"),
    ],
)
def test_what_a_method_of_ones_own_must_return(pruned, mask, message):
    with pytest.raises(ValueError, match=message):
        gp.prune_calibrated(linear, PARAMS, [X], 0.5, method=Returning(pruned, mask))
