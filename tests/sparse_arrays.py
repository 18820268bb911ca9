"""Arrays with few non-zeros, and a comparison of all their bits."""

import jax.numpy as jnp
import numpy as np


def make_array(shape, dtype, seed=0):
    """Mostly +0.0, with -0.0, NaN and the smallest number among the others."""
    rng = np.random.default_rng(seed)
    array = np.where(rng.random(shape) < 0.2, rng.normal(size=shape), 0.0)
    array = array.astype(jnp.dtype(dtype))
    special = [-0.0, np.nan, float(jnp.finfo(dtype).smallest_subnormal)]
    for place, value in zip(rng.permutation(array.size), special, strict=False):
        array.reshape(-1)[place] = value
    return array


def assert_same_bits(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
