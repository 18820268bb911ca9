"""What several tests need."""

import jax

import gradprune_jax as gp


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
