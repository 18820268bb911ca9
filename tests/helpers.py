"""What several tests need."""

import contextlib

import jax


def enable_x64():
    """64-bit types inside the block; the context manager moved in newer JAX."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


@contextlib.contextmanager
def counted_traces(fn):
    """The function, and how often Python ran it: once for each trace under jit."""
    traces = []

    def counted(*args, **kwargs):
        traces.append(None)
        return fn(*args, **kwargs)

    yield counted, traces
