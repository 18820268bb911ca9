"""A training step in each Flax API, in which nothing knows of pruning.

Pruning is a link of the optimizer `tx`; the code here is the code of dense training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

from gradprune_jax.demo.data import IMAGE_SHAPE
from gradprune_jax.demo.models import LinenNetwork, NnxNetwork

Api = Literal["linen", "nnx"]
NetworkFunction = Callable[[Any, jax.Array], Any]

_LINEN_NETWORK = LinenNetwork()  # a description without parameters


class LinenLearner:
    """Linen: parameters and optimizer state in a `TrainState`."""

    def __init__(self, tx: optax.GradientTransformation, seed: int) -> None:
        images = jnp.zeros((1, *IMAGE_SHAPE, 1), jnp.uint8)
        variables = _LINEN_NETWORK.init(jax.random.key(seed), images)
        self._state = TrainState.create(
            apply_fn=_LINEN_NETWORK.apply, params=variables["params"], tx=tx
        )

    @property
    def params(self) -> Any:
        """The parameters."""
        return self._state.params

    @property
    def opt_state(self) -> Any:
        """The optimizer's state."""
        return self._state.opt_state

    @property
    def fn(self) -> NetworkFunction:
        """The network as a function of its parameters and images."""
        return _linen_logits

    def step(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Do one optimizer update, and return the loss before it, a float32 scalar."""
        self._state, loss = _linen_step(self._state, images, labels)
        return loss

    def correct(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the number of images classified correctly, an int32 scalar."""
        return _linen_correct(self._state.params, images, labels)


class NnxLearner:
    """NNX: a module that holds its parameters, and an `nnx.Optimizer`."""

    def __init__(self, tx: optax.GradientTransformation, seed: int) -> None:
        self._network = NnxNetwork(nnx.Rngs(seed))
        self._optimizer = nnx.Optimizer(self._network, tx, wrt=nnx.Param)

    @property
    def params(self) -> Any:
        """The parameters."""
        return nnx.state(self._network, nnx.Param)

    @property
    def opt_state(self) -> Any:
        """The optimizer's state."""
        return self._optimizer.opt_state

    @property
    def fn(self) -> NetworkFunction:
        """The network as a function of its parameters and images."""
        graphdef, _ = nnx.split(self._network)
        return lambda params, images: nnx.merge(graphdef, params)(images)

    def step(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Do one optimizer update, and return the loss before it, a float32 scalar."""
        return _nnx_step(self._network, self._optimizer, images, labels)

    def correct(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the number of images classified correctly, an int32 scalar."""
        return _nnx_correct(self._network, images, labels)


Learner = LinenLearner | NnxLearner


def create(api: Api, tx: optax.GradientTransformation, seed: int) -> Learner:
    """Make a new learner; the same seed gives the same parameters."""
    return NnxLearner(tx, seed) if api == "nnx" else LinenLearner(tx, seed)


def count_correct(
    fn: NetworkFunction, params: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Count the images that a network classifies correctly, an int32 scalar."""
    return _correct(fn(params, images), labels)


def _linen_logits(params: Any, images: jax.Array) -> Any:
    return _LINEN_NETWORK.apply({"params": params}, images)


@functools.partial(jax.jit, donate_argnums=0)
def _linen_step(
    state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Update a `TrainState`, whose old arrays are donated."""

    def loss_fn(params: Any) -> jax.Array:
        return _loss(state.apply_fn({"params": params}, images), labels)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


@jax.jit
def _linen_correct(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Count the correct answers with these parameters."""
    return count_correct(_linen_logits, params, images, labels)


@nnx.jit(donate_argnums=(0, 1))
def _nnx_step(
    network: NnxNetwork,
    optimizer: nnx.Optimizer[NnxNetwork],
    images: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Update a network and its optimizer, whose old arrays are donated."""

    def loss_fn(network: NnxNetwork) -> jax.Array:
        return _loss(network(images), labels)

    loss, gradients = nnx.value_and_grad(loss_fn)(network)
    optimizer.update(network, gradients)
    return loss


@nnx.jit
def _nnx_correct(
    network: NnxNetwork, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Count the correct answers of a network."""
    return _correct(network(images), labels)


def _loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        dtype=jnp.float32,
    )


def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Count how often the largest logit is that of the label."""
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
