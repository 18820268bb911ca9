"""One of two processes: the masks of its shards, against the oracle's."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests import oracle

SCHEDULE = gp.polynomial_schedule(0.9, 0, 4, every=2)
CASES = {
    "jit, two axes": (P("x", "y"), False),
    "jit, one axis": (P(("x", "y"), None), False),
    "shard_map": (P("x", "y"), True),
}


def make_weights(seed):
    """Weights with many ties; the kernel is large enough to be sampled."""
    rng = np.random.default_rng(seed)
    return {
        "embedding": np.round(rng.normal(size=(64, 24)) * 8).astype(jnp.bfloat16),
        "kernel": np.round(rng.normal(size=(512, 520)) * 8).astype(np.float32),
    }


def place(tree, sharding):
    """Global arrays, of which every process makes the shards of its own devices."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(
            leaf.shape, sharding, lambda index: leaf[index]
        ),
        tree,
    )


def make_update(mesh, layout, inside_shard_map, **fields):
    if not inside_shard_map:
        return jax.jit(gp.gradual_prune(SCHEDULE, **fields).update)
    tx = gp.gradual_prune(SCHEDULE, **fields, partition_specs=layout)
    state_specs = gp.GradualPruneState(P(), layout)
    update = jax.shard_map(
        tx.update,
        mesh=mesh,
        in_specs=(layout, state_specs, layout),
        out_specs=(layout, state_specs),
    )
    return jax.jit(update)


def is_equal(array, whole):
    """Whether the shards on this process hold what the whole array does there."""
    return all(
        np.array_equal(shard.data, whole[shard.index])
        for shard in array.addressable_shards
    )


def differences(mesh, layout, inside_shard_map, **fields):
    """What is not as the oracle says, in three steps from given masks and count."""
    sharding = NamedSharding(mesh, layout)
    update = make_update(mesh, layout, inside_shard_map, **fields)
    rng = np.random.default_rng(1)
    masks = {
        name: rng.random(weight.shape) < 0.8 for name, weight in make_weights(0).items()
    }
    state = gp.GradualPruneState(
        place(np.array(2, np.int32), NamedSharding(mesh, P())), place(masks, sharding)
    )
    for step in (2, 3, 4):
        weights = make_weights(step)
        if SCHEDULE.is_update_step(step):
            wanted = oracle.next_masks(
                list(weights.values()),
                list(masks.values()),
                float(SCHEDULE.sparsity(step)),
                **fields,
            )
            masks = dict(zip(masks, wanted, strict=True))
        params = place(weights, sharding)
        updates, state = jax.block_until_ready(update(params, state, params))
        for name, weight in weights.items():
            mask = masks[name]
            if not is_equal(state.masks[name], mask):
                yield f"mask of {name!r} after step {step}"
            if not is_equal(updates[name], np.where(mask, weight, -weight)):
                yield f"update of {name!r} at step {step}"
    if not is_equal(state.count, np.array(5)):
        yield "count"


def main(address, process):
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(process))
    assert (jax.device_count(), jax.local_device_count()) == (8, 4)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    # To the end in any case: the other process waits for the counts of this one.
    found = [
        f"{case}, {allocation}: {difference}"
        for allocation in ("uniform", "global")
        for case, (layout, inside_shard_map) in CASES.items()
        for difference in differences(
            mesh, layout, inside_shard_map, allocation=allocation
        )
    ]
    sys.exit("\n".join(found) or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
