"""Pruning with inputs: convolutions of every kind, by the patches of their images."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import gradprune_jax as gp
from tests.calibration import METHODS, assert_like_numpy, inputs_like, weights_like

CONVOLUTIONS = {
    "plain": dict(features=8, kernel_size=(3, 3)),
    "strided": dict(features=8, kernel_size=(3, 2), strides=(2, 1), padding="VALID"),
    "dilated": dict(features=8, kernel_size=(3, 3), kernel_dilation=(2, 1)),
    "circular": dict(features=8, kernel_size=(3, 3), padding="CIRCULAR"),
    "grouped": dict(features=8, kernel_size=(3, 3), feature_group_count=2),
    "depthwise": dict(features=8, kernel_size=(3, 3), feature_group_count=4),
    "one axis": dict(features=8, kernel_size=(5,)),
    "three axes": dict(features=8, kernel_size=(2, 2, 3)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_by_their_patches(name, kind):
    fields = CONVOLUTIONS[kind]
    window = fields["kernel_size"]
    groups = fields.get("feature_group_count", 1)
    layer = nn.Conv(use_bias=False, **fields)
    x = inputs_like(0, 3 * 6 ** len(window), 4).reshape(3, *[6] * len(window), 4)
    params = layer.init(jax.random.key(0), x)
    pruned, masks = gp.prune_calibrated(
        layer.apply, params, [x[:2], x[2:]], 0.5, method=METHODS[name]
    )
    kernel, found, mask = (
        np.asarray(tree["params"]["kernel"]) for tree in (params, pruned, masks)
    )
    # Every kernel of one weight picks one element of each patch, exactly.
    inputs = 4 // groups
    picking = nn.Conv(use_bias=False, **(fields | {"features": groups}))
    rows = []
    for place in np.ndindex(*window, inputs):
        one = np.zeros((*window, inputs, groups), np.float32)
        one[place] = 1
        rows.append(np.asarray(picking.apply({"params": {"kernel": one}}, x)))
    rows = np.stack(rows, -1).reshape(-1, groups, len(rows))
    for group in range(groups):
        own = slice(group * 8 // groups, (group + 1) * 8 // groups)
        flat = [
            each[..., own].reshape(rows.shape[-1], -1) for each in (kernel, found, mask)
        ]
        assert_like_numpy(name, flat[0], rows[:, group], flat[1], flat[2], 0.5)


def transposed_convolution(params, x):
    return jax.lax.conv_transpose(
        x, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def equinox_like(params, x):
    image = x.transpose(0, 3, 1, 2)
    return jax.lax.conv_general_dilated(
        image,
        params["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
    )


@pytest.mark.parametrize(
    ("fn", "shape", "to_matrix"),
    [
        (transposed_convolution, (3, 3, 4, 8), lambda k: k.reshape(36, 8)),
        (equinox_like, (8, 4, 3, 3), lambda k: k.reshape(8, 36).T),
    ],
)
def test_other_convolutions_have_a_small_error(fn, shape, to_matrix):
    params = {"kernel": weights_like(0, *shape)}
    x = inputs_like(1, 3 * 36, 4).reshape(3, 6, 6, 4)
    dense = np.asarray(fn(params, x))
    errors = {}
    for name, method in METHODS.items():
        pruned, mask = gp.prune_calibrated(fn, params, [x], 0.5, method=method)
        errors[name] = np.linalg.norm(fn(pruned, x) - dense)
        assert np.asarray(mask["kernel"]).mean() == 0.5
        if name == "wanda":
            assert set(to_matrix(np.asarray(mask["kernel"])).sum(0)) == {18}
    magnitude, _ = gp.prune(params, 0.5)
    errors["magnitude"] = np.linalg.norm(fn(magnitude, x) - dense)
    assert errors["sparse_gpt"] < errors["wanda"] < errors["magnitude"]


def test_groups_of_n_of_m_lie_along_the_inputs_of_torch_layouts():
    params = {"kernel": weights_like(0, 8, 4, 3, 3)}
    x = inputs_like(1, 3 * 36, 4).reshape(3, 6, 6, 4)
    for method in METHODS.values():
        _, masks = gp.prune_calibrated(
            equinox_like, params, [x], 0.5, method=method, structure=gp.NM(2, 4, axis=1)
        )
        assert (np.asarray(masks["kernel"]).sum(1) == 2).all()
