"""What a compiled update of sharded weights moves and holds: counts alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from gradprune_jax._top_k import sampling
from tests.meshes import MOVING, all_reduced_words, make_mesh

SCHEDULE = gp.polynomial_schedule(0.8, 0, 4, every=2)
LAYOUTS = [P("x", None), P(None, "y"), P("x", "y"), P(("x", "y"), None), P()]


def compile_update(shape, layout, *, in_shardings=False, **fields):
    """The program of one update of a leaf, nothing allocated."""
    leading = P(*[None] * (len(shape) - len(layout)), *layout)
    sharding = NamedSharding(make_mesh(), leading)
    replicated = NamedSharding(make_mesh(), P())
    shardings = (
        {"kernel": sharding},
        gp.GradualPruneState(replicated, {"kernel": sharding}),
        {"kernel": sharding},
    )
    tx = gp.gradual_prune(SCHEDULE, **fields)
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    arguments = (params, jax.eval_shape(tx.init, params), params)
    if in_shardings:
        return jax.jit(tx.update, in_shardings=shardings).lower(*arguments).compile()
    placed = jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        arguments,
        shardings,
    )
    return jax.jit(tx.update).lower(*placed).compile()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *itertools.product([(320, 104)], LAYOUTS[:4]),
        ((16, 8), P("x", "y")),
        ((3, 3, 64, 128), P(("x", "y"), None)),
        ((544, 1000), P("x", "y")),
        ((632, 632), P(("x", "y"), None)),
    ],
    ids=str,
)
def test_a_sharded_update_moves_counts_alone(shape, layout):
    """Sorting a sharded weight gathers it whole on every device. Here a pass adds up
    two counts for each group, and a pass over a sample those of a window."""
    program = compile_update(shape, layout).as_text()
    assert "all-reduce" in program
    for other in MOVING:
        assert other not in program
    assert max(all_reduced_words(program)) <= sampling.STEPS


def test_counts_of_many_groups_are_a_few_words_for_each():
    layout = P("x", None)
    program = compile_update((6, 64, 32), layout, stack_axis=0).as_text()
    assert max(all_reduced_words(program)) <= 4 * 6
    for other in MOVING:
        assert other not in program


@pytest.mark.parametrize("shape", [(64, 128), (1024, 512)], ids=str)
def test_a_mesh_that_shows_only_in_the_shardings_of_jit_moves_no_weights(shape):
    program = compile_update(shape, P("x", "y"), in_shardings=True).as_text()
    for other in MOVING:
        assert other not in program
    assert max(all_reduced_words(program)) <= sampling.STEPS


@pytest.mark.parametrize("layout", LAYOUTS[1:3], ids=str)
def test_memory_on_a_device_is_proportional_to_its_shard(layout):
    shape = (2048, 1024)
    local = NamedSharding(make_mesh(), layout).shard_shape(shape)
    memory = compile_update(shape, layout).memory_analysis()
    assert memory.temp_size_in_bytes <= 0.5 * np.prod(local)
