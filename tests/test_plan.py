"""What a plan prints: alike layers folded, and what looks wrong."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import gradprune_jax as gp

SCHEDULE = gp.polynomial_schedule(0.5, 0, 10, every=5)


def shapes_of(tree, dtype=jnp.float32):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def rows(table):
    """The cells of the table proper, by path."""
    lines = table.splitlines()[2:]
    cells = [line.split("  ") for line in lines if not line.startswith("  ")]
    return {row[0]: [cell.strip() for cell in row if cell] for row in cells}


def checks(plan):
    return [line for line in str(plan).splitlines() if line.startswith("check rule")]


def test_alike_layers_are_one_row_unless_asked_not_to():
    layers = [{"attention": {"kernel": (8, 8), "bias": (8,)}} for _ in range(40)]
    plan = gp.plan(SCHEDULE, shapes_of({"layers": layers, "head": {"kernel": (8, 2)}}))
    table = rows(str(plan))
    assert table["layers/{0..39}/attention/kernel"][-1] == "40 x 32"
    assert table["layers/{0..39}/attention/bias"][-1] == "40 x 8"
    assert "head/kernel" in table
    assert len([path for path in table if path.startswith("layers")]) == 2
    whole = rows(plan.table(fold=False))
    assert {leaf.path for leaf in plan.leaves} <= set(whole)
    assert len(plan.leaves) == 81
    # All that is not a row of a leaf is the same.
    assert str(plan).splitlines()[-3:] == plan.table(fold=False).splitlines()[-3:]


def test_only_what_is_alike_but_for_one_number_is_folded():
    tree = {
        "layers_2": {"kernel": (4, 4)},
        "layers_10": {"kernel": (4, 4)},
        "layers_11": {"kernel": (4, 4)},
        "layers_12": {"kernel": (4, 8)},  # another shape
        "layers_13": {"kernel": (4, 4)},  # another rule
        "layers_014": {"kernel": (4, 4)},  # a number that is a word
        "conv2d": {"kernel": (4, 4)},
        "conv3d": {"kernel": (4, 4)},
        "b": [[{"w": (2, 2)}, {"w": (2, 2)}], [{"w": (2, 2)}, {"w": (2, 2)}]],
    }
    rules = [gp.Rule(None, where="layers_13/.*"), gp.Rule(SCHEDULE)]
    table = rows(str(gp.plan(rules, shapes_of(tree))))
    assert {path for path in table if "rule" not in path and "total" not in path} == {
        "layers_{2,10,11}/kernel",
        "layers_12/kernel",
        "layers_13/kernel",
        "layers_014/kernel",
        "conv2d/kernel",
        "conv3d/kernel",
        "b/{0,1}/0/w",
        "b/{0,1}/1/w",
    }


def test_dtypes_and_counts_are_folded_apart():
    layers = [{"kernel": (4, 4)}, {"kernel": (4, 4)}]
    params = {"a": shapes_of(layers), "b": shapes_of(layers)}
    params["b"][1] = shapes_of({"kernel": (4, 4)}, jnp.bfloat16)
    table = rows(str(gp.plan(SCHEDULE, params, allocation="global")))
    assert table["a/{0,1}/kernel"][-1] == "by global rank"
    assert {"b/0/kernel", "b/1/kernel"} <= set(table)


def test_a_plan_says_what_its_rules_have_set():
    params = shapes_of({"a": {"kernel": (3, 8, 4)}, "b": {"kernel": (3, 4, 8)}})
    printed = str(
        gp.plan(
            SCHEDULE,
            params,
            allocation="global",
            stack_axis=0,
            min_density=0.1,
            min_per_channel=2,
            output_axis=-2,
        )
    )
    for field in ("stack_axis=0", "min_density=0.1", "min_per_channel=2"):
        assert f", {field}" in printed
    assert ", output_axis=-2): keeps" in printed
    assert "(where=is_weight, uniform): keeps" in str(gp.plan(SCHEDULE, params))


def test_a_plan_ends_with_the_weights_that_no_rule_matches():
    tree = {
        "mlp": [{"kernel": (5, 10), "mystery": (10, 10)} for _ in range(4)],
        "probe": (1, 50),
        "bias": (50,),
    }
    params = shapes_of(tree)
    plan = gp.plan(SCHEDULE, params)
    assert str(plan).splitlines()[-1] == (
        "left dense though they have two axes or more: 'mlp/{0..3}/mystery', 'probe' "
        "(64.3 % of all weights)"
    )
    assert [leaf.path for leaf in plan.leaves if leaf.is_missed] == [
        *(f"mlp/{i}/mystery" for i in range(4)),
        "probe",
    ]
    rules = [gp.Rule(None, where="probe"), gp.Rule(SCHEDULE, where="mlp/.*")]
    for on_purpose in (
        gp.plan(rules, params),
        gp.plan(SCHEDULE, shapes_of({"kernel": (2, 2), "bias": (4,)})),
        gp.plan(SCHEDULE, {"kernel": jnp.ones((2, 2)), "ids": jnp.ones((2, 2), int)}),
    ):
        assert str(on_purpose).splitlines()[-1].startswith("total: ")


@pytest.mark.parametrize(
    ("missed", "share"),
    [
        (999_000, "99.9 %"),
        (999_999, "more than 99.9 %"),
        (1_000, "0.1 %"),
        (1, "less than 0.1 %"),
    ],
)
def test_shares_are_never_rounded_to_nothing_or_to_all(missed, share):
    params = shapes_of({"kernel": (1, 1_000_000 - missed), "mystery": (1, missed)})
    last_line = str(gp.plan(SCHEDULE, params)).splitlines()[-1]
    assert last_line.endswith(f"'mystery' ({share} of all weights)")


PATTERN = {"structure": gp.NM(2, 4)}
FIRST = {"structure": gp.NM(2, 4, axis=-3)}


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((32, 4, 8), PATTERN),  # (inputs, heads, features)
        ((32, 4, 32), PATTERN),  # (inputs, layers, outputs), nn.scan along axis 1
        ((4, 32, 32), FIRST),  # (layers, inputs, outputs)
        ((12, 32, 4, 8), PATTERN),  # stacked query
        ((12, 32, 4, 8), dict(stack_axis=0, **PATTERN)),
    ],
)
def test_groups_across_heads_or_layers_are_seen(shape, fields):
    plan = gp.plan(SCHEDULE, shapes_of({"query": {"kernel": shape}}), **fields)
    (line,) = checks(plan)
    printed = "x".join(map(str, shape))
    assert f"'query/kernel' ({printed}) may lie across heads or layers" in line
    assert "stack_axis" in line
    assert "-3" in line


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((32, 4, 8), FIRST),
        ((4, 8, 32), PATTERN),  # (heads, features, outputs)
        ((16, 16, 256), PATTERN),  # as many heads as features
        ((3, 32, 32), PATTERN),  # a one-dimensional convolution, and stacked layers
        ((3, 3, 64, 128), PATTERN),
        ((32, 16, 3, 3), dict(structure=gp.NM(2, 4, axis=1))),  # Equinox, PyTorch
        ((4, 128), PATTERN),
        ((12, 32, 8, 4), dict(stack_axis=0, **FIRST)),
        ((12, 32, 4, 8), {}),
    ],
)
def test_groups_along_inputs_are_left_alone(shape, fields):
    plan = gp.plan(SCHEDULE, shapes_of({"a": {"kernel": shape}}), **fields)
    assert checks(plan) == []


def test_a_stack_axis_of_leaves_that_are_not_stacked_is_seen():
    params = shapes_of(
        {
            "embedding": (64, 8),
            "layers": {"query": {"kernel": (6, 8, 4, 4)}, "mlp": {"kernel": (6, 8, 8)}},
            "convolution": {"kernel": (3, 3, 8, 8)},
        }
    )
    rows_line, counts_line = checks(gp.plan(SCHEDULE, params, stack_axis=0))
    assert "stack_axis=0 applies to 'embedding' (64x8) too" in rows_line
    assert "'convolution/kernel' (3x3x8x8), 'layers/mlp/kernel' (6x8x8)" in counts_line
    assert "one rule with stack_axis for stacked parameters" in counts_line
    rules = [
        gp.Rule(SCHEDULE, where="layers/.*", stack_axis=0),
        gp.Rule(SCHEDULE),
    ]
    assert checks(gp.plan(rules, params)) == []


def test_a_stack_axis_longer_than_another_is_seen():
    """Layers in the middle, nn.scan along axis 1."""
    params = shapes_of({"q": {"kernel": (64, 12, 64)}})
    (line,) = checks(gp.plan(SCHEDULE, params, stack_axis=0))
    assert "stack_axis=0 is not the shortest axis of 'q/kernel' (64x12x64)" in line
    assert "set stack_axis=1" in line
    assert checks(gp.plan(SCHEDULE, params, stack_axis=1)) == []
    for shape in ((12, 64, 64), (8, 8, 8), (12, 64, 4, 16)):
        params = shapes_of({"q": {"kernel": shape}})
        assert checks(gp.plan(SCHEDULE, params, stack_axis=0)) == []


@pytest.mark.parametrize("name", ["linear/weight/0", "cell/weight_ih", "weight_hh"])
@pytest.mark.parametrize(
    ("default", "given", "advised"),
    [
        (PATTERN, dict(structure=gp.NM(2, 4, axis=1)), "set axis=1 in NM"),
        (
            dict(structure=gp.Channel()),
            dict(structure=gp.Channel(axis=0)),
            "set axis=0 in Channel",
        ),
        (
            dict(min_per_channel=1),
            dict(min_per_channel=1, output_axis=0),
            "set output_axis=0",
        ),
    ],
)
def test_default_axes_of_weights_with_outputs_first_are_seen(
    name, default, given, advised
):
    """Equinox and PyTorch: (outputs, inputs)."""
    params = shapes_of({name: (8, 4)})
    (line,) = checks(gp.plan(SCHEDULE, params, **default))
    assert f"{name!r} (8x4)" in line
    assert advised in line
    assert "Equinox and PyTorch" in line
    assert checks(gp.plan(SCHEDULE, params, **given)) == []
    assert checks(gp.plan(SCHEDULE, shapes_of({"kernel": (8, 4)}), **default)) == []
    stacked = shapes_of({name: (3, 8, 4)})
    assert len(checks(gp.plan(SCHEDULE, stacked, stack_axis=0, **default))) == 1
    assert checks(gp.plan(SCHEDULE, stacked, stack_axis=0, **given)) == []


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-1, 4), r"'a/kernel' has shape \(-1, 4\); no length is below 0"),
        ((2.5, 4), r"'a/kernel' has shape \(2.5, 4\); lengths must be integers"),
        ((True, 4), r"'a/kernel' has shape \(True, 4\); lengths must be integers"),
        (((2, 2), 4), "lengths must be integers"),
        (("4", 4), "lengths must be integers"),
    ],
)
@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_shapes_that_no_array_has_are_refused(shape, message, name):
    class Shape:
        dtype = jnp.dtype("float32")

    leaf = Shape()
    leaf.shape = shape
    other = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    with pytest.raises(ValueError, match=message.replace("kernel", name)):
        gp.plan(SCHEDULE, {"a": {name: leaf}, "b": {"kernel": other}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'a/kernel' has 4,294,967,296 weights or blocks that are ranked together"),
        (dict(allocation="global"), "'a/kernel' has 4,294,967,296 .* its stack_axis"),
        (dict(structure=gp.Block((1, 1))), "'a/kernel' has 4,294,967,296 weights"),
    ],
)
def test_a_leaf_that_no_update_can_rank_is_refused(fields, message):
    params = shapes_of({"a": {"kernel": (2**16, 2**16)}})
    with pytest.raises(ValueError, match=message):
        gp.plan(SCHEDULE, params, **fields)
    with pytest.raises(ValueError, match="4294967296 weights or blocks"):
        tx = gp.gradual_prune(SCHEDULE, **fields)
        state = jax.eval_shape(tx.init, params)
        jax.eval_shape(tx.update, params, state, params)


def test_a_large_leaf_in_small_parts_is_planned():
    params = shapes_of({"kernel": (2**16, 2**16)})
    for fields in (
        dict(stack_axis=0),
        dict(structure=gp.Block((2, 2))),
        dict(structure=gp.NM(2, 4)),
    ):
        assert gp.plan(SCHEDULE, params, **fields).kept == (2**31,)
    assert gp.plan([gp.Rule(None, where="kernel")], params).mask_bytes == 0


def test_a_plan_needs_no_device():
    """A launcher plans before it knows of accelerators, or where there are none."""
    program = """
import jax, gradprune_jax as gp
shapes = {"kernel": jax.ShapeDtypeStruct((64, 32), "float32")}
schedule = gp.polynomial_schedule(0.9, 0, 10)
for allocation in ("uniform", "global", "erk"):
    print(gp.plan(schedule, shapes, allocation=allocation, min_per_channel=1).kept)
assert not jax._src.xla_bridge._backends
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "(205,)\n" * 3


def test_plans_count_beyond_what_32_bits_and_65536_slices_hold():
    schedule = gp.polynomial_schedule(0.9, 0, 10)
    stacked = {"kernel": jax.ShapeDtypeStruct((200_000, 60_000), jnp.float32)}
    planned = gp.plan(
        schedule, stacked, allocation="global", stack_axis=0, min_density=0.9
    )
    assert planned.kept_units == (10_800_000_000,)
    wide = {"kernel": jax.ShapeDtypeStruct((8, 2**33, 4), jnp.float32)}
    planned = gp.plan(schedule, wide, structure=gp.Channel(axis=0), min_per_channel=5)
    assert planned.kept_units == (1,)  # which has 2^33 weights in each output
