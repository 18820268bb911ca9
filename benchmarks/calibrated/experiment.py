"""The experiment: one training, then every method at every sparsity."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradprune_jax as gp
from benchmarks.calibrated.transformer import Decoder, DecoderTask
from benchmarks.paper import corpora, training
from benchmarks.paper.task import Configuration

# All matrices of the blocks; embedding and softmax stay dense, as in the papers. Query,
# key and value are (width, heads, head width), the others end with (inputs, outputs).
_OF_THREE = r"block\d+/attention/(query|key|value)/kernel"
_OTHERS = r"block\d+/(attention/out|up|down)/kernel"
SEQUENCES = 128
_BATCH = 16
_FINE_TUNING = 0.05
_FINE_TUNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Level:
    """How sparse.

    Attributes:
      name: for tables.
      sparsity: the fraction of zeros.
      pattern: N of M; None is unstructured.
    """

    name: str
    sparsity: float
    pattern: tuple[int, int] | None = None

    def structure(self, axis: int) -> gp.NM | None:
        """The pattern along an axis."""
        return None if self.pattern is None else gp.NM(*self.pattern, axis=axis)

    @property
    def rules(self) -> list[gp.Rule]:
        """The rules of all matrices, groups along the axis of inputs."""
        schedule = gp.one_shot_schedule(self.sparsity, 0)
        return [
            gp.Rule(schedule, where=_OF_THREE, structure=self.structure(-3)),
            gp.Rule(schedule, where=_OTHERS, structure=self.structure(-2)),
        ]


LEVELS = (
    Level("50 %", 0.5),
    Level("60 %", 0.6),
    Level("70 %", 0.7),
    Level("2:4", 0.5, (2, 4)),
    Level("4:8", 0.5, (4, 8)),
)
METHODS: dict[str, gp.CalibratedMethod | None] = {
    "magnitude": None,
    "Wanda": gp.Wanda(),
    "SparseGPT": gp.SparseGPT(),
}


def task(folder: pathlib.Path | None, *, quick: bool) -> DecoderTask:
    """The network and its text; tiny ones to try it out."""
    text = corpora.load(folder, 50 if quick else 8_000, since=0 if quick else 1900)
    if not quick:
        return DecoderTask(Decoder(len(text.vocabulary)), text, steps=1_800)
    text = text.limit(2_000)
    network = Decoder(len(text.vocabulary), length=16, width=16, layers=2, heads=2)
    return DecoderTask(network, text, steps=8, sequences=4)


def trained(
    own: DecoderTask, folder: pathlib.Path, report: Callable[[int, float], None]
) -> Any:
    """The parameters after training, from a checkpoint if there is one."""
    return training.last_state(Configuration("dense", own), 0, folder, report).params


def calibration(own: DecoderTask) -> list[jax.Array]:
    """Batches of pieces of the training text."""
    pieces = own.pieces(np.random.default_rng(0), SEQUENCES)[:, :-1]
    batch = min(_BATCH, SEQUENCES)
    return [jnp.asarray(part) for part in np.split(pieces, SEQUENCES // batch)]


def pruned(
    own: DecoderTask, params: Any, level: Level, method: gp.CalibratedMethod | None
) -> tuple[Any, Any]:
    """Prunes once: with calibration inputs, or by magnitude if there is no method."""
    if method is not None:
        return gp.prune_calibrated(
            lambda params, words: own.network.apply({"params": params}, words),
            params,
            calibration(own),
            level.rules,
            method=method,
        )
    masks: Any = jax.tree.map(lambda _: optax.MaskedNode(), params)
    for rule in level.rules:
        _, own_masks = gp.prune(
            params, level.sparsity, where=rule.where, structure=rule.structure
        )
        masks = jax.tree.map(_first, masks, own_masks, is_leaf=_is_dense)
    return gp.apply_masks(params, masks), masks


def fine_tuned(own: DecoderTask, params: Any, masks: Any) -> Any:
    """The parameters after a twentieth of the training, with fixed masks."""
    steps = max(1, round(_FINE_TUNING * own.steps))
    rate = optax.cosine_decay_schedule(_FINE_TUNING_RATE, steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, weight_decay=own.weight_decay),
        gp.keep_masks(masks),
    )

    @jax.jit
    def step(params: Any, state: Any, words: Any, key: jax.Array) -> Any:
        gradients = jax.grad(lambda p: own.loss(p, (), words, key)[0])(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, state = step(params, state, own.batch(1, number), key)
    gp.check_pruned(params, state)
    return params


class _Comparing(gp.CalibratedMethod):
    """Leaves weights as they are, and notes what each method would do to them."""

    def __init__(self, level: Level) -> None:
        self.rows: list[dict[str, Any]] = []
        self._level = level

    def statistic(self, inputs: jax.Array) -> jax.Array:
        """The Gram matrix, from which everything follows."""
        return gp.SparseGPT().statistic(inputs)

    def prune(self, weights: jax.Array, statistic: jax.Array, target: Any) -> Any:
        """Notes the relative error of the layer's outputs by each method."""
        row: dict[str, Any] = {"layer": target.name}
        for name, method in METHODS.items():
            if method is None:
                structure = self._level.structure(-1)
                new, _ = gp.prune(
                    {"w": weights}, target.sparsity, where="w", structure=structure
                )
                after = new["w"]
            else:
                gram: Any = statistic
                if isinstance(method, gp.Wanda):
                    gram = jnp.diagonal(statistic, axis1=1, axis2=2)
                after, mask = method.prune(weights, gram, target)
                after = jnp.where(mask, after, 0)
            difference = _energy(after - weights, statistic)
            row[name] = float(jnp.sqrt(difference / _energy(weights, statistic)))
        self.rows.append(row)
        return weights, jnp.ones_like(weights, dtype=bool)


def layer_errors(own: DecoderTask, params: Any, level: Level) -> list[dict[str, Any]]:
    """The relative error of every layer's outputs, on the dense network's inputs."""
    method = _Comparing(level)
    pruned(own, params, level, method)
    return method.rows


def _energy(weights: jax.Array, gram: jax.Array) -> jax.Array:
    """The sum of squares of the outputs of samples with this Gram matrix."""
    return jnp.einsum("goi,gij,goj->", weights, gram, weights, precision="highest")


def _first(one: Any, other: Any) -> Any:
    return other if _is_dense(one) else one


def _is_dense(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
