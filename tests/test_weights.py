"""Which arrays are weights by default, and the warning of what is left dense."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState

import gradprune_jax as gp
from gradprune_jax._rules import assign, warn_of_dense_weights
from gradprune_jax._rules.weights import WEIGHT_NAMES
from gradprune_jax._tree import named_leaves

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)


def test_default_leaves_attention_biases_and_stacked_norms_dense():
    """ "Every leaf with ndim > 1" prunes the biases of multi-head attention, and
    LayerNorm scale and bias under nn.scan."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.LayerNorm()(x)
            return nn.MultiHeadDotProductAttention(num_heads=2)(x, x), None

    stack = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
    )()
    params = jax.eval_shape(stack.init, jax.random.key(0), jnp.ones((1, 4, 8)), None)
    plan = gp.plan(SCHEDULE, params)
    assert {leaf.path.split("/")[-1] for leaf in plan.pruned} == {"kernel"}
    assert len(plan.pruned) == 4
    dense = {(leaf.path.split("/")[-1], len(leaf.shape)) for leaf in plan.dense}
    assert dense == {("bias", 2), ("bias", 3), ("scale", 2)}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("blocks/0/mlp/gating_einsum", (2, 8, 16)),  # Gemma
        ("blocks/0/mlp/linear", (16, 8)),
        ("embedder/input_embedding", (32, 8)),
        ("cell/weight_ih", (12, 4)),  # Equinox
        ("cell/weight_hh", (12, 4)),
        ("gru/w_i", (4, 12)),  # Haiku
        ("gru/w_h", (4, 12)),
        ("separable/pointwise_kernel", (1, 1, 4, 8)),  # Keras
        ("lstm/recurrent_kernel", (4, 16)),
        ("experts/wi_0", (3, 4, 8)),  # MaxText
        ("experts/wi_1", (3, 4, 8)),
        ("experts/wo", (3, 8, 4)),
        ("experts/gate_proj", (3, 4, 8)),  # tunix
        ("mlp/linear/weight/0", (8, 4)),  # haliax, whose arrays have no key
        ("normal_proj/weight", (8, 4)),  # words that are no norm
        ("abnormal/weight", (8, 4)),
        ("enormous/weight", (8, 4)),
    ],
)
def test_the_default_knows_the_names_of_libraries(path, shape):
    """89 % of a Gemma block stayed dense."""
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    assert gp.is_weight(tuple(path.split("/")), leaf)
    assert gp.is_weight((path,), leaf)  # Keras' own paths are one key
    assert not gp.is_weight((path,), jax.ShapeDtypeStruct(shape, jnp.int8))
    assert not gp.is_weight((path,), jax.ShapeDtypeStruct(shape[:1], jnp.bfloat16))


@pytest.mark.parametrize(
    "path",
    [
        "dense/bias",
        "norm/scale",
        "experts/wi_0_bias",
        "separable/depthwise_kernel",
        "vision/pos_embedding",
        "relpos_bias/rel_embedding",
        "dense/lora_kernel_a",
        "blocks/ln_1/weight",
        "blocks/input_layernorm/weight/0",
        "bn2/weight",
        "blocks/norm/weight",
        "layer_norm/weight",
        "LayerNorm_0/weight",
        "rms_norm/weight",
        "RMSNorm/weight",
        "BatchNorm2d_1/weight",
        "norm1/weight",
        "norms/0/weight",
        "normalization/weight",
        "0/1",
        "",
    ],
)
def test_the_default_leaves_what_is_no_weight_matrix(path):
    leaf = jax.ShapeDtypeStruct((4, 8), jnp.float32)  # stacked, so it has two axes
    assert not gp.is_weight(tuple(path.split("/")), leaf)
    assert not gp.is_weight((), leaf)


def test_the_default_documents_every_name_that_it_knows():
    for name in WEIGHT_NAMES:
        assert f"`{name}`" in gp.is_weight.__doc__


def dense_warnings(rules, params):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leaves = named_leaves(params)
        warn_of_dense_weights(rules, leaves, assign(rules, leaves))
    return [str(warning.message) for warning in caught]


def test_a_warning_where_the_default_leaves_most_weights_dense():
    shapes = {
        "kernel": (4, 4),
        "q": (4, 5),
        "k": (2, 2),
        "steps": (9, 9),
        "bias": (99,),
    }
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32 if name == "steps" else jnp.float32)
        for name, shape in shapes.items()
    }
    (message,) = dense_warnings([gp.Rule(SCHEDULE)], params)
    assert (
        "leaves 60 % of the weights dense (of those in leaves of two axes or more that "
        "no rule keeps dense)"
    ) in message
    assert "'q', 'k'. Give where" in message
    for rules in (
        [gp.Rule(SCHEDULE, where="kernel")],  # as it was told
        [gp.Rule(None, where="q"), gp.Rule(SCHEDULE)],  # on purpose
        [gp.Rule(SCHEDULE, where="q"), gp.Rule(SCHEDULE)],
        [gp.Rule(None), gp.Rule(SCHEDULE, where="q")],
    ):
        assert dense_warnings(rules, params) == []
    assert dense_warnings([gp.Rule(SCHEDULE)], {"kernel": jnp.ones((2, 2))}) == []
    assert dense_warnings([gp.Rule(SCHEDULE)], {}) == []


def test_init_warns_once_and_reads_no_values():
    params = {"kernel": jnp.ones((2, 2)), "q": jnp.ones((4, 4))}
    for init in (
        gp.gradual_prune(SCHEDULE).init,
        jax.jit(gp.gradual_prune(SCHEDULE).init),
    ):
        with pytest.warns(
            UserWarning, match="leaves 80 % of the weights.*'q'"
        ) as found:
            init(params)
        assert len(found) == 1


def test_a_warning_never_says_all_where_something_is_pruned():
    params = {
        "kernel": jax.ShapeDtypeStruct((1, 1), jnp.float32),
        "q": jax.ShapeDtypeStruct((1_000, 10_000), jnp.float32),
    }
    (message,) = dense_warnings([gp.Rule(SCHEDULE)], params)
    assert "leaves more than 99.9 % of the weights dense" in message


@pytest.mark.parametrize(
    "call",
    [
        lambda init, params: init(params),
        lambda init, params: jax.jit(init)(params),
        jax.eval_shape,
        lambda init, params: TrainState.create(
            apply_fn=None, params=params, tx=optax.GradientTransformation(init, None)
        ),
    ],
)
def test_the_warning_points_to_the_line_of_the_user(call):
    tx = optax.chain(optax.adam(1e-3), gp.gradual_prune(SCHEDULE))
    params = {"kernel": jnp.ones((2, 2)), "q": jnp.ones((4, 4))}
    with pytest.warns(UserWarning, match="of the weights dense") as found:
        call(tx.init, params)
    assert found[0].filename == __file__


def test_many_dense_weights_are_named_by_the_largest():
    params = {"kernel": jnp.ones((2, 2))} | {
        f"q{i}": jax.ShapeDtypeStruct((i, 9), jnp.float32) for i in range(1, 6)
    }
    (message,) = dense_warnings([gp.Rule(SCHEDULE)], params)
    assert "'q5', 'q4', 'q3' and 2 more" in message


def test_the_default_is_the_same_rule_named_or_not():
    assert gp.Rule(SCHEDULE, where=gp.is_weight) == gp.Rule(SCHEDULE)
