"""What several tests need."""

import jax


def enable_x64():
    """64-bit types inside the block; the context manager moved in newer JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()
