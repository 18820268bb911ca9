"""A task that takes no time, for tests of what trains any task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import gradprune_jax as gp
from benchmarks.paper.study import Metric, Study
from benchmarks.paper.task import Configuration, window


@dataclasses.dataclass(frozen=True)
class Line:
    """A task that takes no time: weights that follow their targets."""

    steps: int = 25
    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def init(self, key):
        return {"kernel": jax.random.normal(key, (6, 5))}, jnp.zeros(())

    def batch(self, seed, step):
        return np.random.default_rng((seed, step)).normal(size=(6, 5)).astype("float32")

    def loss(self, params, carried, batch, key):
        noise = jax.random.normal(key, (6, 5))
        error = jnp.mean((params["kernel"] - batch - noise) ** 2)
        return error, carried + error

    def evaluate(self, params, carried):
        return {"error": float(carried)}


LINE = Study(
    name="line",
    title="Line",
    metric=Metric("error", "error", "", lower_is_better=True),
    configurations=(
        Configuration("dense", Line()),
        Configuration("80 %", Line(), (gp.Rule(window(0.8, 25)),)),
    ),
    seeds=2,
    source="noise",
    checksum=0,
)
