"""Trains a transformer on a mesh of two axes, in a process that may hang.

Beside the gradients a step returns sums of the logits, which are summed over devices
too, and the masks are updated at every step.
"""

import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradprune_jax as gp

STEPS = 10


class Decoder(nn.Module):
    """Embedding, attention and dense kernels, each split otherwise."""

    @nn.compact
    def __call__(self, ids):
        hidden = nn.Embed(64, 32)(ids)
        for _ in range(2):
            hidden += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(hidden))
            inner = nn.relu(nn.Dense(64)(nn.LayerNorm()(hidden)))
            hidden += nn.Dense(32)(inner)
        return nn.Dense(64)(nn.LayerNorm()(hidden))


def spec_of(path, leaf):
    if leaf.shape[0] % 2:
        return P()
    if "embedding" in jax.tree_util.keystr(path):
        return P("y", "x")
    if leaf.ndim == 2:
        return P("x", "y") if leaf.shape[-1] == 64 else P("y", "x")
    return P("y") if leaf.shape == (64,) else P("x")


def main():
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    ids = jax.random.randint(jax.random.key(1), (4, 16), 1, 64)
    params = jax.jit(Decoder().init)(jax.random.key(0), ids)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(
            leaf, NamedSharding(mesh, spec_of(path, leaf))
        ),
        params,
    )
    schedule = gp.polynomial_schedule(0.8, 0, STEPS - 1, every=1)
    tx = optax.chain(optax.adamw(1e-3), gp.gradual_prune(schedule))
    state = jax.jit(tx.init)(params)

    def loss_fn(params):
        logits = Decoder().apply({"params": params}, ids)
        targets = jax.nn.one_hot(ids, 64)
        return -jnp.mean(jnp.sum(targets * nn.log_softmax(logits), -1)), logits

    @jax.jit
    def step(params, state):
        (loss, logits), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = tx.update(gradients, state, params)
        correct = jnp.sum(logits.argmax(-1) == ids)
        logged = (loss, correct, jnp.sum(nn.log_softmax(logits)))
        return optax.apply_updates(params, updates), state, logged

    for _ in range(STEPS):
        params, state, _ = jax.block_until_ready(step(params, state))
    gp.check_pruned(params, state)
    print(f"sparsity {gp.metrics(state)['sparsity/total']:.3f}")


if __name__ == "__main__":
    main()
