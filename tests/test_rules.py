"""Which parameters are pruned."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import gradprune_jax as gp
from gradprune_jax._rules import assign, warn_of_dense_weights
from gradprune_jax._rules.weights import WEIGHT_NAMES
from gradprune_jax._tree import named_leaves

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)
PARAMS = {
    "encoder": {
        "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
        "norm": {"scale": jnp.ones(6)},
    },
    "head": {"kernel": jnp.ones((6, 2)), "bias": jnp.ones(2)},
    "steps": jnp.zeros((2, 2), jnp.int32),
}


def pruned(rules, params=PARAMS, **fields):
    return [leaf.path for leaf in gp.plan(rules, params, **fields).pruned]


def masked(rules, params=PARAMS, **fields):
    masks = gp.gradual_prune(rules, **fields).init(params).masks
    return [
        leaf.path
        for leaf, mask in zip(
            gp.plan(rules, params, **fields).leaves,
            jax.tree.leaves(masks, is_leaf=lambda m: isinstance(m, optax.MaskedNode)),
            strict=True,
        )
        if not isinstance(mask, optax.MaskedNode)
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ["encoder/dense/kernel", "head/kernel"]),
        ("head/.*", ["head/bias", "head/kernel"]),
        (".*kernel", ["encoder/dense/kernel", "head/kernel"]),
        ("head/kernel", ["head/kernel"]),
        (lambda path, leaf: path[0] == "head" and len(leaf.shape) == 1, ["head/bias"]),
        (gp.is_weight, ["encoder/dense/kernel", "head/kernel"]),
    ],
)
def test_where(where, expected):
    assert pruned(SCHEDULE, where=where) == expected
    assert masked(SCHEDULE, where=where) == expected


def test_a_regex_matches_the_whole_path():
    with pytest.raises(ValueError, match="matches no parameter"):
        pruned(SCHEDULE, where="head")


def test_first_match_wins_and_none_stays_dense():
    later = gp.one_shot_schedule(0.9, 3)
    rules = [
        gp.Rule(None, where="head/.*"),
        gp.Rule(later, where=".*/kernel"),
        gp.Rule(SCHEDULE, where=".*/(scale|kernel)"),
    ]
    plan = gp.plan(rules, PARAMS)
    assert {leaf.path: leaf.rule for leaf in plan.leaves} == {
        "encoder/dense/kernel": 1,
        "encoder/dense/bias": None,
        "encoder/norm/scale": 2,
        "head/kernel": None,
        "head/bias": None,
        "steps": None,
    }


def test_a_rule_that_matches_nothing_is_an_error_with_the_closest_paths():
    for attempt in (
        lambda: gp.plan(SCHEDULE, PARAMS, where="hed/kernel"),
        lambda: gp.gradual_prune(SCHEDULE, where="hed/kernel").init(PARAMS),
        lambda: jax.eval_shape(
            gp.gradual_prune(SCHEDULE, where="hed/kernel").init, PARAMS
        ),
    ):
        with pytest.raises(ValueError, match="hed/kernel.*closest.*'head/kernel'"):
            attempt()
    with pytest.raises(ValueError, match="where=is_weight.*matches no parameter"):
        gp.plan(SCHEDULE, {"bias": jnp.ones(3)})


def test_a_rule_whose_leaves_are_all_taken_prunes_nothing_and_plan_says_so():
    rules = [gp.Rule(SCHEDULE), gp.Rule(SCHEDULE, where="head/kernel")]
    plan = gp.plan(rules, PARAMS)
    assert plan.kept == (18, 0)
    assert "rule 1 (where='head/kernel'): prunes nothing" in str(plan)


def test_callables_read_shape_and_dtype_alone():
    """masked and partition call user functions on updates later: no values there."""
    seen = []

    def where(path, leaf):
        seen.append(leaf)
        assert isinstance(path, tuple)
        return path[-1] == "kernel"

    tx = gp.gradual_prune(SCHEDULE, where=where)
    jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in seen)


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


def test_a_callable_that_matches_nothing_is_not_told_of_regular_expressions():
    def where(path, leaf):
        return False

    with pytest.raises(ValueError, match="matches no parameter") as error:
        gp.plan(SCHEDULE, PARAMS, where=where)
    assert "was never true" in str(error.value)
    assert "'head/kernel'" in str(error.value)
    assert "regular expression" not in str(error.value)
    with pytest.raises(ValueError, match="the whole path") as error:
        gp.plan(SCHEDULE, PARAMS, where="nothing")
    assert "By default" not in str(error.value)


def test_every_name_that_is_printed_selects_its_leaf():
    """Two leaves may print alike, and names may have special characters."""
    params = {
        "a": {"0": jnp.ones((2, 2)), "b(1)/kernel": jnp.ones((2, 2))},
        "a/0": jnp.ones((2, 2)),
        "c/d": jnp.ones((2, 2)),
    }
    plan = gp.plan(SCHEDULE, params, where=".*")
    assert len(plan.pruned) == 4
    for leaf in plan.leaves:
        assert pruned(SCHEDULE, params, where=leaf.path) == [leaf.path]
        assert masked(SCHEDULE, params, where=leaf.path) == [leaf.path]
    assert len(pruned(SCHEDULE, params, where="a/0")) == 2


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (jnp.int32, "is not a floating dtype"),
        (jnp.complex64, "is not a floating dtype"),
        (jnp.float8_e8m0fnu, "has no zero"),
        (jnp.float4_e2m1fn, "has fewer than 8 bits"),
    ],
)
def test_dtypes_that_cannot_be_pruned_are_refused(dtype, reason):
    params = {"a": {"kernel": jax.ShapeDtypeStruct((2, 2), dtype)}}
    with pytest.raises(ValueError, match=f"'a/kernel' has dtype .*{reason}"):
        gp.plan(SCHEDULE, params, where=".*")


def test_longdouble_is_refused():
    with pytest.raises(ValueError, match="'kernel' has dtype .*cannot be pruned"):
        gp.prune({"kernel": np.ones((2, 2), np.longdouble)}, 0.5)


def test_a_stack_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'head/bias' has shape .*stack axis 1"):
        gp.plan(SCHEDULE, PARAMS, where="head/bias", stack_axis=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(where="("), "no regular expression"),
        (dict(where=3), "where is 3"),
        (dict(allocation="erdos"), "allocation is 'erdos'.*'uniform', 'global', 'erk'"),
        (dict(structure="2:4"), "structure is '2:4'"),
        (dict(stack_axis=0.5), "stack_axis is 0.5"),
        (dict(stack_axis=jnp.array(0)), "static_args"),
        (dict(min_density=2.0, allocation="global"), "min_density is 2.0"),
        (dict(min_density="a", allocation="global"), "min_density is 'a'"),
        (dict(structure=gp.Unstructured), "structure is <class"),
        (dict(min_density=0.5), "floor under allocation='global'"),
        (dict(min_per_channel=-1), "min_per_channel is -1; it must be an integer"),
        (dict(min_per_channel=0.5), "min_per_channel is 0.5"),
        (dict(min_per_channel=True), "min_per_channel is True"),
        (dict(min_per_channel=1, output_axis=0.5), "output_axis is 0.5"),
        (dict(min_per_channel=1, output_axis=jnp.array(0)), "static_args"),
        (dict(output_axis=0), "output_axis is 0 with min_per_channel=0"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        gp.Rule(SCHEDULE, **fields)
    with pytest.raises(ValueError, match=message):
        gp.plan(SCHEDULE, PARAMS, **fields)


@pytest.mark.parametrize("number", [np.float32, jnp.float32, float])
def test_a_floor_is_the_decimal_that_it_prints_as(number):
    rule = gp.Rule(SCHEDULE, allocation="global", min_density=number(0.1))
    assert rule.min_density == 0.1
    assert hash(rule) == hash(gp.Rule(SCHEDULE, allocation="global", min_density=0.1))


@pytest.mark.parametrize("number", [np.int64, jnp.int32, np.uint8, int])
def test_a_floor_of_channels_is_a_python_integer(number):
    axis = np.int64(0)
    rule = gp.Rule(SCHEDULE, None, stack_axis=axis, min_per_channel=number(3))
    assert type(rule.min_per_channel) is type(rule.stack_axis) is int
    rule = gp.Rule(SCHEDULE, min_per_channel=number(3), output_axis=axis)
    assert type(rule.output_axis) is int
    assert rule == gp.Rule(SCHEDULE, min_per_channel=3, output_axis=0)
    assert hash(rule) == hash(gp.Rule(SCHEDULE, min_per_channel=3, output_axis=0))


def test_a_floor_of_channels_may_be_traced():
    """inject_hyperparams makes arrays of numbers, tracers under jit."""

    def trace(least):
        rule = gp.Rule(SCHEDULE, min_per_channel=least, output_axis=0)
        assert rule.min_per_channel is least
        assign([rule], named_leaves(PARAMS))
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_per_channel=least)
        with pytest.raises(ValueError, match="min_per_channel of rule 0 is traced"):
            gp.plan(rule, PARAMS)
        with pytest.raises(ValueError, match="min_density of rule 0 is traced"):
            gp.plan(SCHEDULE, PARAMS, allocation="global", min_density=least)
        return least

    jax.eval_shape(trace, 2)


CHANNELS = {"a": {"kernel": jnp.ones((6, 8))}, "b": {"kernel": jnp.ones((3, 6, 8))}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(structure=gp.Channel()), "'a/kernel'.*drops whole output channels"),
        (dict(structure=gp.Channel(0), output_axis=0), "'a/kernel'.*drops whole"),
        (dict(structure=gp.Channel(1)), "'a/kernel'.*min_per_channel=2.*leave one"),
        (dict(structure=gp.NM(2, 4, axis=-1)), "'a/kernel'.*along the output axis 1"),
        (
            dict(structure=gp.NM(2, 3, axis=0), output_axis=0),
            "'a/kernel'.*along the output axis 0",
        ),
        (
            dict(structure=gp.NM(1, 6)),
            "'a/kernel' keeps 1 weights of each.*fewer than min_per_channel=2.*to 1",
        ),
        (
            dict(structure=gp.Block((4, 8))),
            "'a/kernel'.*cut short on axis 0.*ides 6",
        ),
        (
            dict(output_axis=2),
            "'a/kernel' has the axes .6, 8., without the output",
        ),
        (
            dict(output_axis=2, stack_axis=0, where="b/kernel"),
            "'b/kernel' has the axes .6, 8., without the output axis 2",
        ),
    ],
)
def test_structures_with_which_no_floor_of_channels_holds(fields, message):
    pattern = fields.get("structure")
    final = 1 - pattern.keep / pattern.of if isinstance(pattern, gp.NM) else 0.5
    schedule = gp.one_shot_schedule(final, 0)
    with pytest.raises(ValueError, match=message):
        gp.plan(schedule, CHANNELS, min_per_channel=2, **fields)
    with pytest.raises(ValueError, match=message):
        gp.prune(CHANNELS, schedule.final_sparsity, min_per_channel=2, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        dict(structure=gp.Unstructured()),
        dict(structure=gp.Block((3, 5))),
        dict(structure=gp.Block((4, 4)), output_axis=-2),
        dict(structure=gp.Channel(-2)),
        dict(structure=gp.Channel(), output_axis=0),
        dict(structure=gp.NM(1, 2)),
        dict(structure=gp.NM(2, 4, axis=-1), output_axis=0),
        dict(allocation="global"),
        dict(allocation="erk"),
    ],
)
def test_structures_with_which_a_floor_of_channels_holds(fields):
    assert gp.plan(SCHEDULE, CHANNELS, min_per_channel=2, **fields).pruned
    empty = {"kernel": jnp.ones((0, 8))}
    assert gp.plan(SCHEDULE, empty, min_per_channel=2, **fields).pruned


def test_the_default_is_the_same_rule_named_or_not():
    assert gp.Rule(SCHEDULE, where=gp.is_weight) == gp.Rule(SCHEDULE)


def test_plan_reads_no_values():
    params = {"kernel": jnp.ones((4, 4)), "rng": jax.random.key(0)}
    kept = []

    def traced(params):
        kept.append(gp.plan(SCHEDULE, params).kept)
        return params

    jax.eval_shape(traced, params)
    assert kept == [gp.plan(SCHEDULE, params).kept]


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk"])
def test_plan_of_a_schedule_that_falls_is_that_of_its_peak(allocation):
    falling = gp.polynomial_schedule(0.5, 0, 2, every=1, initial_sparsity=0.9)
    peaked = gp.custom_schedule(lambda step: [0.2, 0.9, 0.5][int(step)], 0, 2, every=1)
    params = {"kernel": jnp.ones((10, 10))}
    schedules = [falling] if allocation == "erk" else [falling, peaked]
    for schedule in schedules:
        assert gp.plan(schedule, params, allocation=allocation).kept == (10,)


def test_what_is_no_schedule_is_refused():
    for wrong in (0.9, None, optax.constant_schedule(0.9), "cubic"):
        with pytest.raises(TypeError, match="must be a SparsitySchedule"):
            gp.gradual_prune(wrong)
    with pytest.raises(TypeError, match="rule 1 of the list"):
        gp.gradual_prune([gp.Rule(SCHEDULE), SCHEDULE])
    with pytest.raises(ValueError, match="empty"):
        gp.gradual_prune([])


def test_rules_come_without_fields_beside_them():
    with pytest.raises(ValueError, match="write it in the rules"):
        gp.gradual_prune([gp.Rule(SCHEDULE)], where="head/.*")
    with pytest.raises(ValueError, match="write it in the rules"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_density=0.1)
    with pytest.raises(ValueError, match="min_per_channel is 1 beside a list"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, min_per_channel=1)
    with pytest.raises(ValueError, match="output_axis is 0 beside a list"):
        gp.plan([gp.Rule(SCHEDULE)], PARAMS, output_axis=0)


def test_plan_is_a_table_made_without_arrays():
    shapes = jax.eval_shape(lambda: PARAMS)
    plan = gp.plan(SCHEDULE, shapes, total_steps=11)
    assert str(plan) == str(gp.plan(SCHEDULE, PARAMS))
    assert plan.kept == (12 + 6,)
    assert plan.mask_bytes == 24 + 12
    assert plan.update_steps == ((0, 5, 10),)
    for words in ("encoder/dense/kernel", "4x6", "50.00 %", "12", "dense", "36 bytes"):
        assert words in str(plan)


def test_plan_counts_what_training_keeps():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.normal(size=(7, 9)).astype(np.float32)},
        "b": {"kernel": rng.normal(size=(3, 5, 2)).astype(np.float32)},
    }
    for fields in (
        {},
        dict(allocation="global"),
        dict(allocation="global", min_density=0.8),
        dict(where="b/.*", stack_axis=1),
    ):
        schedule = gp.one_shot_schedule(0.37, 0)
        tx = gp.gradual_prune(schedule, **fields)
        _, state = tx.update(params, tx.init(params), params)
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(state.masks))
        plan = gp.plan(schedule, params, **fields)
        assert plan.kept == (kept,)
        assert f"keeps {kept:,} of" in str(plan)


def test_plan_refuses_a_window_that_does_not_end_within_training():
    """end_step equal to the number of steps: the last update has count N - 1."""
    gp.plan(SCHEDULE, PARAMS, total_steps=11)
    with pytest.raises(ValueError, match="end_step=10.*Set end_step to 9"):
        gp.plan(SCHEDULE, PARAMS, total_steps=10)
    with pytest.raises(ValueError, match="total_steps is 0"):
        gp.plan(SCHEDULE, PARAMS, total_steps=0)


def test_plan_refuses_traced_schedules():
    def trace(final):
        return gp.plan(gp.one_shot_schedule(final, 0), PARAMS).mask_bytes

    with pytest.raises(ValueError, match="traced"):
        jax.jit(trace)(0.5)
