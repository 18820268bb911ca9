"""A training that saves checkpoints, and goes on from the latest that is complete."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp
from tests import oracle

STEPS = 30
SAVE_EVERY = 4
SCHEDULE = gp.polynomial_schedule(0.8, begin_step=2, end_step=20, every=2)
FIELDS = dict(allocation="global")
TX = optax.chain(optax.adam(1e-2), gp.gradual_prune(SCHEDULE, **FIELDS))
LAYERS = {
    "dense1": ((32, 64), np.float32),
    "dense2": ((64, 8), jnp.bfloat16),
}


def make_state():
    rng = np.random.default_rng(0)
    params = {
        name: {
            "kernel": (rng.normal(size=shape) / 8).astype(dtype),
            "bias": np.zeros(shape[-1], dtype),
        }
        for name, (shape, dtype) in LAYERS.items()
    }
    return {"params": params, "opt_state": TX.init(params)}


def make_batch(step):
    return np.random.default_rng(step).normal(size=(16, 32)).astype(np.float32)


def loss_fn(params, batch):
    activations = batch
    for layer in params.values():
        activations = jnp.tanh(activations @ layer["kernel"] + layer["bias"])
    return jnp.mean((activations - batch[:, :8]) ** 2)


def train_step(state, batch):
    params = state["params"]
    gradients = jax.grad(loss_fn)(params, batch)
    updates, opt_state = TX.update(gradients, state["opt_state"], params)
    return {"params": optax.apply_updates(params, updates), "opt_state": opt_state}


def kernels_and_masks(state):
    kernels = [np.asarray(layer["kernel"]) for layer in state["params"].values()]
    masks = jax.tree.leaves(gp.get_masks(state["opt_state"]))
    return kernels, [*map(np.asarray, masks)]


def check_masks(step, before, after):
    """That a step makes the masks that the oracle does, and prunes by them."""
    kernels, wanted = kernels_and_masks(before)
    if SCHEDULE.is_update_step(step):
        sparsity = float(SCHEDULE.sparsity(step))
        wanted = oracle.next_masks(kernels, wanted, sparsity, **FIELDS)
    for kernel, mask, same in zip(*kernels_and_masks(after), wanted, strict=True):
        np.testing.assert_array_equal(mask, same)
        assert not kernel[~mask].any()


def restore(manager, shardings):
    """The step and state to go on from."""
    step = manager.latest_step()
    if step is None:
        return 0, jax.device_put(make_state(), shardings)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        jax.eval_shape(make_state),
        shardings,
    )
    return step, manager.restore(step, args=ocp.args.StandardRestore(target))


def write(folder, step, state):
    """Writes all arrays, to compare with those of another training."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{step}.npz", *map(np.asarray, jax.tree.leaves(state)))


def main(folder, rows, columns):
    jax.config.update("jax_num_cpu_devices", rows * columns)
    mesh = jax.make_mesh((rows, columns), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, P("x", "y") if leaf.ndim == 2 else P()),
        jax.eval_shape(make_state),
    )
    # A state that comes back in other layouts would be another program's input.
    step_fn = jax.jit(train_step, out_shardings=shardings)
    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        start, state = restore(manager, shardings)
        write(folder / "arrays", start, state)
        for step in range(start, STEPS):
            before = state
            batch = jax.device_put(make_batch(step), NamedSharding(mesh, P("x")))
            state = jax.block_until_ready(step_fn(before, batch))
            check_masks(step, before, state)
            done = step + 1
            if done % SAVE_EVERY == 0:
                manager.save(done, args=ocp.args.StandardSave(state))
                write(folder / "arrays", done, state)
            print(done, flush=True)
            sys.stdin.readline()  # until the parent has read it, and kills or not
    write(folder / "arrays", STEPS, state)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:]))
