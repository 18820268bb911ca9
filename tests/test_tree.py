"""One path for a parameter, in every kind of tree, boxed or plain."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from gradprune_jax import _tree

Layer = collections.namedtuple("Layer", "kernel bias")


def names(tree):
    return [leaf.name for leaf in _tree.named_leaves(tree)]


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.others = nnx.List([nnx.Linear(4, 4, rngs=rngs)])


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": {"kernel": 1.0}}, ["a/kernel"]),
        (freeze({"a": {"kernel": 1.0}}), ["a/kernel"]),
        ([{"w": 1.0}, ({"w": 2.0},)], ["0/w", "1/0/w"]),
        (Layer(1.0, 2.0), ["kernel", "bias"]),
        ({"value": 1.0, "a": {"value": 2.0}}, ["a/value", "value"]),
        ({"mlp/~/linear_0": {"w": 1.0}}, ["mlp/~/linear_0/w"]),
        ({"a": nn.Partitioned(1.0, ("x",))}, ["a"]),
        ({"a": nn.Partitioned({"value": 1.0}, ("x",))}, ["a/value"]),
        ({"a": nnx.Param({"kernel": jnp.ones(2), "b": [1.0]})}, ["a/b/0", "a/kernel"]),
        ({"value": nn.Partitioned(1.0, ("x",))}, ["value"]),
        ({"a": nnx.Param(jnp.ones(2))}, ["a"]),
        ({"a": None, "b": {}}, []),
        (1.0, [""]),
    ],
)
def test_path_of_a_leaf(tree, expected):
    assert names(tree) == expected


def test_nnx_paths_are_the_same_boxed_pure_and_as_dicts():
    """Others read l1/kernel/value at init and l1/kernel at update."""
    state = nnx.state(Model(), nnx.Param)
    expected = ["first/bias", "first/kernel", "others/0/bias", "others/0/kernel"]
    assert names(state) == expected
    assert names(nnx.to_pure_dict(state)) == expected
    assert names(_plain(state)) == expected


def _plain(state):
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return jax.tree.map(lambda v: v[...], state, is_leaf=is_variable)


def test_linen_boxes_add_nothing_to_a_path():
    dense = nn.Dense(
        3, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "x"))
    )
    boxed = dense.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    assert isinstance(boxed["kernel"], nn.Partitioned)
    assert names(boxed) == names(nn.unbox(boxed)) == ["bias", "kernel"]


def test_paths_that_print_alike_get_different_names():
    """{'a': [1]}, {'a': {'0': 1}} and {'a/0': 1} all print as a/0."""
    for tree in ({"a": [1]}, {"a": {"0": 1}}, {"a/0": 1}):
        assert names(tree) == ["a/0"]
    assert names({"a": {"0": 1}, "a/0": 2, "b": 3}) == ["['a']['0']", "['a/0']", "b"]


def test_equinox_and_haiku():
    equinox = pytest.importorskip("equinox")
    haiku = pytest.importorskip("haiku")
    mlp = equinox.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    params = equinox.filter(mlp, equinox.is_array)
    assert "layers/0/weight" in names(params)
    assert len(names(params)) == len(jax.tree.leaves(params))
    net = haiku.transform(lambda x: haiku.nets.MLP([3, 2])(x))
    params = net.init(jax.random.key(0), np.ones((1, 2), np.float32))
    assert names(params)[1] == "mlp/~/linear_0/w"
