"""What several tests need."""

import dataclasses

import jax
import jax.numpy as jnp

import gradprune_jax as gp
from gradprune_jax._mask_update import PrunedLeaf, update_masks
from gradprune_jax._top_k import whole

# Options for jax.jit that take back what `conftest` turns off.
AS_FOR_USERS = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):
    AS_FOR_USERS["xla_cpu_use_fusion_emitters"] = True


def enable_x64():
    """64-bit types inside the block; the context manager moved in newer JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def zeros(params):
    """The sparsity of a tree by path, rounded, to compare with literals."""
    return {
        path: round(float(fraction), 3)
        for path, fraction in gp.sparsity(params).items()
    }


def update_to(rule, sparsity, weights, masks):
    """One mask update of a rule to any sparsity, traced or not; None is its own."""
    if sparsity is not None:
        rule = dataclasses.replace(rule, schedule=gp.one_shot_schedule(sparsity, 0))
    leaves = [
        PrunedLeaf(leaf, mask, whole(leaf.shape), name="")
        for leaf, mask in zip(weights, masks, strict=True)
    ]
    return update_masks(rule, jnp.int32(0), leaves)
