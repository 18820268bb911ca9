"""Sizes that are symbols: of batches, and of images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import export

import gradprune_jax as gp
from tests.networks import KEY, assert_same, dense, killed, network


def test_a_batch_size_that_is_not_known():
    fn, params, x = network("transformer")
    smaller, _ = killed(fn, params, x)
    (batch,) = export.symbolic_shape("batch")
    tokens = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    shrunk = gp.shrink(fn, smaller, tokens)
    assert_same(fn, smaller, shrunk, x)
    known = gp.shrink(fn, smaller, x)
    assert shrunk.sizes == known.sizes


@pytest.mark.parametrize("pool", [nn.max_pool, nn.avg_pool])
def test_image_sizes_that_are_not_known(pool):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = pool(nn.Conv(8, (3, 3))(x), (2, 2), (2, 2), "SAME")
            return nn.Dense(3)(x.mean((1, 2)))

    model, image = Model(), dense(0, 2, 8, 8, 1)
    params = model.init(KEY, image)
    sizes = export.symbolic_shape("b, h, w, 1", constraints=("h >= 4", "w >= 4"))
    images = jax.ShapeDtypeStruct(sizes, jnp.float32)
    groups = gp.channel_groups(model.apply, params, images)
    assert [group.size for group in groups.free] == [8]
