"""Scores and their masks are the same on every mesh."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests.scoring import SCHEDULE, make_tree


def run_on_a_mesh(score, place, wrap=lambda fn: fn, specs=None):
    """Masks and scores after a run; the weights and gradients are the same on any."""
    tx = gp.with_gradual_prune(
        optax.sgd(0.1), SCHEDULE, score=score, partition_specs=specs
    )
    params = place(make_tree(0))
    state = jax.jit(wrap(tx.init))(params)
    step = jax.jit(wrap(tx.update))
    rng = np.random.default_rng(5)
    for _ in range(6):
        gradients, params = (
            jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32"), params)
            for _ in range(2)
        )
        _, state = jax.block_until_ready(step(place(gradients), state, place(params)))
    return jax.tree.map(np.asarray, (state.prune_state.masks, state[2:])), state


@pytest.mark.parametrize(
    "score", [gp.Random(3), gp.Saliency(), gp.Fisher(0.7), gp.Movement()], ids=str
)
@pytest.mark.parametrize("layout", ["auto", "explicit", "shard_map"])
def test_masks_and_scores_are_the_same_on_every_mesh(score, layout):
    alone, _ = run_on_a_mesh(score, lambda tree: tree)
    kind = AxisType.Explicit if layout == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    specs = {"first": {"kernel": P("x", None)}, "second": {"kernel": P("y", "x")}}

    def place(tree):
        return jax.tree.map(
            lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
            tree,
            specs,
        )

    if layout != "shard_map":
        found, state = run_on_a_mesh(score, place)
        if found[1]:
            kernel = state.scores["second"]["kernel"]
            assert kernel.sharding.is_equivalent_to(
                NamedSharding(mesh, P("y", "x")), kernel.ndim
            )
    else:
        prune_state = gp.GradualPruneState(P(), specs)
        inner = optax.sgd(0.1).init(make_tree(0))
        inner = jax.tree.map(lambda _: P(), inner)
        state_specs = gp.WithGradualPruneState(inner, prune_state)
        if isinstance(score, gp.Fisher | gp.Movement):
            state_specs = gp.ScoredPruneState(inner, prune_state, specs)

        def wrap(fn):
            is_init = fn.__name__ == "init_fn"
            in_specs = (specs,) if is_init else (specs, state_specs, specs)
            out_specs = state_specs if is_init else (specs, state_specs)
            return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

        found, _ = run_on_a_mesh(score, place, wrap, specs)
    jax.tree.map(np.testing.assert_array_equal, found, alone)


@pytest.mark.parametrize("structure", [None, gp.NM(2, 4), gp.Block((4, 4))], ids=str)
def test_a_score_may_be_laid_out_unlike_its_weight(structure):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    # jaxlib 0.7.1 cannot compile a small loop that asks for its device.
    weights, scores = (
        np.tile(make_tree(seed)["second"]["kernel"], (2, 2)) for seed in (0, 1)
    )
    placed = jax.device_put(weights, NamedSharding(mesh, P("x", "y")))
    replicated = jax.device_put(scores, NamedSharding(mesh, P()))
    schedule = gp.one_shot_schedule(0.5, 0)

    def masks(params, own):
        tx = gp.with_gradual_prune(
            optax.sgd(0.1), schedule, structure=structure, score=lambda p, g: own
        )
        state = tx.init(params)
        _, state = jax.jit(tx.update)(params, state, params)
        return np.asarray(gp.get_masks(state)["kernel"])

    np.testing.assert_array_equal(
        masks({"kernel": placed}, replicated), masks({"kernel": weights}, scores)
    )
