"""Scores rank blocks, channels, groups and coupled channels as magnitudes do."""

import jax
import numpy as np
import pytest

import gradprune_jax as gp
from tests.scoring import make_tree, top_k

STRUCTURES = {
    "weights": {},
    "global": dict(allocation="global", min_density=0.1),
    "erk": dict(allocation="erk"),
    "stacked": dict(stack_axis=0),
    "channel floors": dict(min_per_channel=2),
    "largest of blocks": dict(structure=gp.Block((2, 3), pool="max")),
    "mean of blocks": dict(structure=gp.Block((2, 4))),
    "channels": dict(structure=gp.Channel()),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_signed_scores_rank_in_every_structure(name, shift):
    """Scores that are all above zero rank as magnitudes do; the order has no origin."""
    fields = STRUCTURES[name]
    weights = make_tree(3)
    gradients = jax.tree.map(lambda leaf: np.abs(leaf) + 1, make_tree(4))
    plain = jax.tree.map(lambda leaf: leaf + np.float32(shift), gradients)
    _, expected = gp.prune(plain, 0.5, **fields)
    _, found = gp.prune(
        weights,
        0.5,
        score=lambda param, gradient: gradient + (shift - 64),
        gradients=gradients,
        **fields,
    )
    # Numbers of few bits: their means are exact, and a shift changes no order.
    if "mean" in name or name == "channels":
        plain = jax.tree.map(lambda leaf: leaf + np.float32(64), gradients)
        _, expected = gp.prune(plain, 0.5, **fields)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_block_of_signed_scores_has_their_mean(pool):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(12, 20)).astype(np.float32)
    scores[0, 0], scores[4, 5], scores[8, 8] = np.inf, -np.inf, np.nan
    blocks = scores.reshape(6, 2, 5, 4).astype(np.float64)
    units = getattr(blocks, pool)((1, 3))
    if pool == "max":
        units[4, 2] = np.nan
    kept = top_k(units, np.ones(units.shape, bool), 10)
    _, masks = gp.prune(
        {"kernel": np.ones((12, 20), np.float32)},
        2 / 3,
        structure=gp.Block((2, 4), pool=pool),
        score=lambda param, gradient: gradient,
        gradients={"kernel": scores},
    )
    np.testing.assert_array_equal(
        masks["kernel"], np.repeat(np.repeat(kept, 2, 0), 4, 1)
    )


def test_groups_of_four_rank_by_a_score():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(16, 6)).astype(np.float32)
    _, masks = gp.prune(
        {"kernel": np.ones((16, 6), np.float32)},
        0.5,
        structure=gp.NM(2, 4),
        score=lambda param, gradient: gradient,
        gradients={"kernel": scores},
    )
    order = np.argsort(-scores.reshape(4, 4, 6), axis=1)
    expected = np.argsort(order, axis=1) < 2
    np.testing.assert_array_equal(masks["kernel"], expected.reshape(16, 6))


def test_coupled_channels_rank_by_a_score():
    params = {
        "up": {"kernel": np.ones((4, 6), np.float32), "bias": np.ones(6, np.float32)},
        "down": {"kernel": np.ones((6, 3), np.float32)},
    }

    def network(params, inputs):
        hidden = inputs @ params["up"]["kernel"] + params["up"]["bias"]
        return jax.nn.relu(hidden) @ params["down"]["kernel"]

    groups = gp.channel_groups(network, params, np.ones((2, 4), np.float32))
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params
    )
    up, down = gradients["up"]["kernel"], gradients["down"]["kernel"]
    means = np.concatenate((up, down.T)).astype(np.float64).mean(0)
    kept = top_k(means, np.ones(6, bool), 3)
    _, masks = gp.prune(
        params,
        0.5,
        structure=gp.CoupledChannels(groups),
        score=lambda param, gradient: gradient,
        gradients=gradients,
    )
    np.testing.assert_array_equal(masks["up"]["bias"], kept)
    np.testing.assert_array_equal(masks["down"]["kernel"].all(1), kept)
