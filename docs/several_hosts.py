"""Pruning on the devices of several processes: one of them.

python several_hosts.py ADDRESS PROCESSES PROCESS
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradprune_jax as gp


def main(address: str, processes: str, process: str) -> None:
    """Trains a few steps, and says how many weights are kept."""
    jax.distributed.initialize(address, int(processes), int(process))
    mesh = jax.make_mesh((jax.device_count(),), ("model",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("model", None))
    whole = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    # Every process makes the pieces that lie on its own devices.
    kernel = jax.make_array_from_callback(whole.shape, split, lambda i: whole[i])
    params = {"kernel": kernel}

    schedule = gp.polynomial_schedule(0.9, begin_step=0, end_step=4, every=2)
    tx = optax.chain(optax.sgd(0.1), gp.gradual_prune(schedule))
    opt_state = jax.jit(tx.init)(params)

    @jax.jit
    def train_step(params, opt_state):
        gradients = jax.tree.map(jnp.sin, params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(5):
        params, opt_state = jax.block_until_ready(train_step(params, opt_state))

    mask = gp.get_masks(opt_state)["kernel"]
    assert mask.sharding == kernel.sharding
    kept = jax.jit(jnp.sum)(mask)
    print(f"process {process} of {processes}: {int(kept):,} of {mask.size:,} are kept")


if __name__ == "__main__":
    main(*sys.argv[1:])
