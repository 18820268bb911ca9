"""Patterns in Flax models: stacked layers, attention, and a rule for each part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import gradprune_jax as gp

LAYERS = 3


class Block(nn.Module):
    """One layer of a transformer, for nn.scan."""

    @nn.compact
    def __call__(self, x, _):
        x = nn.LayerNorm()(x)
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x, x)
        return nn.Dense(8, name="mlp")(x), None


class Transformer(nn.Module):
    """Scanned layers and a head."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )(name="layers")
        x, _ = layers(x, None)
        return nn.Dense(5, name="head")(x)


@pytest.fixture(scope="module")
def params():
    return Transformer().init(jax.random.key(0), jnp.ones((1, 4, 8)))["params"]


def schedule(final=0.5, begin=0, end=6, every=2):
    return gp.polynomial_schedule(final, begin, end, every=every)


# 2:4 in attention along what each product sums over, blocks in one layer after the
# other, and the head as it is: the first rule that matches wins.
RULES = [
    gp.Rule(None, where="head/.*"),
    gp.Rule(
        schedule(),
        where="layers/attention/(query|key|value)/kernel",
        structure=gp.NM(2, 4, axis=-3),
        stack_axis=0,
    ),
    gp.Rule(
        schedule(end=3, every=1),
        where="layers/attention/out/kernel",
        structure=gp.NM(2, 4),
        stack_axis=0,
    ),
    gp.Rule(schedule(0.75, begin=2, end=4), structure=gp.Block((2, 2)), stack_axis=0),
]


def train(tx, params, steps=8):
    state = jax.jit(tx.init)(params)
    traces, history = [], []

    @jax.jit
    def step(params, state):
        traces.append(None)
        gradients = jax.tree.map(jnp.cos, params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, gp.metrics(state)

    for _ in range(steps):
        params, state, numbers = step(params, state)
        gp.check_pruned(params, state)
        history.append(numbers)
    assert len(traces) == 1
    return params, state, history


def test_a_rule_for_each_part_of_a_model(params):
    plan = gp.plan(RULES, params, total_steps=8)
    rules = {leaf.path: leaf.rule for leaf in plan.pruned}
    assert rules == {
        "layers/attention/query/kernel": 1,
        "layers/attention/key/kernel": 1,
        "layers/attention/value/kernel": 1,
        "layers/attention/out/kernel": 2,
        "layers/mlp/kernel": 3,
    }
    assert [len(steps) for steps in plan.update_steps] == [0, 4, 4, 2]
    for words in ("2:4 on axis -3", "2x2 blocks, mean", "updates masks 4 times"):
        assert words in str(plan)
    tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(RULES))
    _, state, history = train(tx, params)
    masks = gp.get_masks(state)["layers"]
    query = np.asarray(
        masks["attention"]["query"]["kernel"]
    )  # (layers, in, heads, dim)
    assert (query.reshape(LAYERS, 2, 4, 2, 4).sum(2) == 2).all()
    # (layers, heads, dim, out)
    out = np.asarray(masks["attention"]["out"]["kernel"])
    assert (out.reshape(LAYERS, 2, 4, 8).sum(2) == 2).all()
    blocks = np.asarray(masks["mlp"]["kernel"]).reshape(LAYERS, 4, 2, 4, 2)
    assert set(np.unique(blocks.sum((2, 4)))) == {0, 4}
    assert (blocks.sum((1, 2, 3, 4)) == 16).all()  # of 64 in every layer
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    assert kept == sum(leaf.kept for leaf in plan.pruned)
    # Every rule has its own window.
    out_curve = [float(h["sparsity/layers/attention/out/kernel"]) for h in history]
    mlp_curve = [float(h["sparsity/layers/mlp/kernel"]) for h in history]
    assert out_curve[3] == 0.5
    assert mlp_curve[:3] == [0.0, 0.0, 0.0]
    assert mlp_curve[4] == 0.75


def test_links_in_a_partition_have_one_tree_of_masks(params):
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "attention" if "attention" in str(path) else "others", params
    )
    tx = optax.partition(
        {
            "attention": optax.chain(
                optax.sgd(0.1),
                gp.gradual_prune(
                    schedule(0.75),
                    where=".*/out/kernel",
                    structure=gp.NM(1, 4),
                    stack_axis=0,
                ),
            ),
            "others": optax.chain(
                optax.sgd(0.1),
                gp.gradual_prune(schedule(), structure=gp.Channel(), where="head/.*l"),
            ),
        },
        labels,
    )
    pruned, state, _ = train(tx, params)
    masks = gp.get_masks(state)
    out = np.asarray(masks["layers"]["attention"]["out"]["kernel"])
    assert (out.reshape(LAYERS, 2, 4, 8).sum(2) == 1).all()
    assert len(gp.dead_channels(pruned)["head/kernel"]) == 2  # round(2.5) of 5
    assert isinstance(masks["head"]["bias"], optax.MaskedNode)


def test_layers_stacked_by_nnx_vmap_are_pruned_each_alone():
    """A layer-stacked leaf got one threshold across all layers."""

    @nnx.split_rngs(splits=LAYERS)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)

    params = nnx.state(make(nnx.Rngs(0)), nnx.Param)
    pruned_paths = {leaf.path for leaf in gp.plan(schedule(), params).pruned}
    assert {path.split("/")[-1] for path in pruned_paths} == {"kernel"}
    for structure in (None, gp.Channel(), gp.Block((1, 2)), gp.NM(2, 4, axis=0)):
        fields = dict(where="query/kernel", structure=structure)
        stacked = params["query"]["kernel"][...]
        # One layer is much smaller, and not pruned the more for it.
        stacked = stacked * jnp.array([1.0, 1e-3, 1.0]).reshape(-1, 1, 1, 1)
        tree = {"query": {"kernel": stacked}}
        _, masks = gp.prune(tree, 0.5, stack_axis=0, **fields)
        for layer in range(LAYERS):
            alone = {"query": {"kernel": stacked[layer]}}
            _, mask = gp.prune(alone, 0.5, **fields)
            np.testing.assert_array_equal(
                masks["query"]["kernel"][layer], mask["query"]["kernel"]
            )


@pytest.mark.parametrize("structure", [gp.NM(2, 4), gp.Block((2, 2)), gp.Channel()])
def test_structures_compose_with_hyperparameters_and_vmap(structure):
    kernel = jax.random.normal(jax.random.key(0), (8, 8))
    tx = optax.inject_hyperparams(gp.gradual_prune)(schedule(), structure=structure)
    state = tx.init({"kernel": kernel})
    _, state = jax.jit(tx.update)({"kernel": kernel}, state, {"kernel": kernel})
    assert gp.get_masks(state)["kernel"].all()
    targets = jnp.array([0.5] if isinstance(structure, gp.NM) else [0.25, 0.5, 0.75])
    swept = jax.jit(
        jax.vmap(lambda s: gp.prune({"kernel": kernel}, s, structure=structure)[1])
    )(targets)
    for target, mask in zip(targets, swept["kernel"], strict=True):
        _, alone = gp.prune({"kernel": kernel}, target, structure=structure)
        np.testing.assert_array_equal(mask, alone["kernel"])
