"""After pruning whole channels: the network is cut, and both are timed side by side."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from gradprune_jax.demo.data import IMAGE_SHAPE
from gradprune_jax.demo.learners import count_correct

if TYPE_CHECKING:
    from gradprune_jax.demo.learners import NetworkFunction
    from gradprune_jax.demo.training import Run, Training

BATCH_SIZES = (1, 64)
_ROUNDS = 15
_SECONDS_A_ROUND = 0.02
_IMAGE = jax.ShapeDtypeStruct((2, *IMAGE_SHAPE, 1), jnp.uint8)


def coupled_channels(fn: NetworkFunction, params: Any) -> gp.CoupledChannels:
    """Make the structure that prunes the channels of a network of images."""
    return gp.CoupledChannels(gp.channel_groups(fn, params, _IMAGE))


def shrink(fn: NetworkFunction, params: Any) -> gp.Shrunk:
    """Cut the channels that are dead out of a network of images."""
    return gp.shrink(fn, params, _IMAGE)


def compare(
    training: Training, fn: NetworkFunction, pruned: Run, shrunk: gp.Shrunk
) -> dict[str, Any]:
    """Measure the pruned network as it was trained, and after the cut.

    Args:
      training: where the test images are.
      fn: the network.
      pruned: its training.
      shrunk: the network after the cut.

    Returns:
      A dictionary of plain numbers: the parameters, the test images classified
      correctly and the milliseconds of a batch, of both, and the width of each group.
    """
    data = training.dataset
    images, labels = jnp.asarray(data.test_images), jnp.asarray(data.test_labels)
    correct = jax.jit(count_correct, static_argnums=0)
    networks = {
        "before": (jax.jit(fn), pruned.params),
        "after": (jax.jit(shrunk.fn), shrunk.params),
    }
    return {
        "parameters": {
            name: sum(leaf.size for leaf in jax.tree.leaves(params))
            for name, (_, params) in networks.items()
        },
        "correct": {
            name: int(correct(network, params, images, labels))
            for name, (network, params) in networks.items()
        },
        "milliseconds": {
            str(size): _time_side_by_side(networks, images[:size])
            for size in BATCH_SIZES
        },
        "widths": {
            name: list(sizes)
            for name, sizes in shrunk.sizes.items()
            if name not in shrunk.fixed
        },
    }


def _time_side_by_side(
    networks: dict[str, tuple[Any, Any]], images: jax.Array
) -> dict[str, float]:
    """The median milliseconds of each network, measured in turns."""

    def seconds(network: Any, params: Any, repetitions: int) -> float:
        started = time.perf_counter()
        for _ in range(repetitions):
            outputs = network(params, images)
        jax.block_until_ready(outputs)
        return (time.perf_counter() - started) / repetitions

    for network, params in networks.values():  # compiles
        seconds(network, params, 1)
    slowest = max(seconds(*network, 1) for network in networks.values())
    repetitions = max(1, round(_SECONDS_A_ROUND / slowest))
    rounds = [
        [seconds(*network, repetitions) for network in networks.values()]
        for _ in range(_ROUNDS)
    ]
    medians = 1000 * np.median(rounds, axis=0)
    return {
        name: round(float(median), 4)
        for name, median in zip(networks, medians, strict=True)
    }
