"""A step without a mask update: Adam with pruning beside Adam alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen

import gradprune_jax as gp
from benchmarks.speed import timing
from gradprune_jax.demo.models import LinenNetwork

Loss = Callable[[Any, Any], jax.Array]


class LanguageLstm(linen.Module):
    """Two LSTM layers between an embedding and a softmax."""

    vocabulary: int = 4_000
    width: int = 256

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, time, vocabulary) of int32 tokens (batch, time)."""
        x = linen.Embed(self.vocabulary, self.width)(tokens)
        for _ in range(2):
            x = linen.RNN(linen.OptimizedLSTMCell(self.width))(x)
        return linen.Dense(self.vocabulary)(x)


class LanguageTransformer(linen.Module):
    """A few pre-norm transformer blocks between an embedding and a softmax."""

    vocabulary: int = 4_000
    width: int = 256
    blocks: int = 4

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits (batch, time, vocabulary) of int32 tokens (batch, time)."""
        x = linen.Embed(self.vocabulary, self.width)(tokens)
        mask = linen.make_causal_mask(tokens)
        for _ in range(self.blocks):
            attention = linen.MultiHeadDotProductAttention(num_heads=8)
            x = x + attention(linen.LayerNorm()(x), mask=mask)
            hidden = linen.gelu(linen.Dense(4 * self.width)(linen.LayerNorm()(x)))
            x = x + linen.Dense(self.width)(hidden)
        return linen.Dense(self.vocabulary)(linen.LayerNorm()(x))


def cross_entropy(model: linen.Module) -> Loss:
    """The mean cross entropy of a model's logits, for (inputs, labels)."""

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, labels = batch
        logits = model.apply(params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    return loss


def _alone() -> tuple[Any, Loss, Any]:
    """No model: constant gradients of one large kernel."""
    return {"kernel": jnp.ones((2_500, 4_000))}, lambda *_: 0.0, None


def _cnn() -> tuple[Any, Loss, Any]:
    """The demonstration's network, on a batch of images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 28, 28, 1), np.uint8)
    return _problem(LinenNetwork(), images, rng.integers(0, 10, 128))


def _language(model: linen.Module) -> tuple[Any, Loss, Any]:
    """A language model, on a batch of token sequences."""
    tokens = np.random.default_rng(0).integers(0, 4_000, (16, 33))
    return _problem(model, tokens[:, :-1], tokens[:, 1:])


def _problem(
    model: linen.Module, inputs: np.ndarray, labels: np.ndarray
) -> tuple[Any, Loss, Any]:
    params = model.init(jax.random.key(0), inputs[:1])
    return params, cross_entropy(model), (inputs, labels)


# What is trained: parameters, loss and one batch, of real shapes.
PROBLEMS: dict[str, Callable[[], tuple[Any, Loss, Any]]] = {
    "the optimizer alone": _alone,
    "the demo's CNN": _cnn,
    "a two-layer LSTM": lambda: _language(LanguageLstm()),
    "a four-block transformer": lambda: _language(LanguageTransformer()),
}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Times the steps of Adam and of Adam with pruning, in turns."""
    params, loss, batch = PROBLEMS[name]()
    adam = optax.adam(1e-3)
    pruned = optax.chain(adam, gp.gradual_prune(_later(0.9)))
    runs = [
        _run(_step(tx, loss, batch), (params, tx.init(params))) for tx in (adam, pruned)
    ]
    return _compare(name, params, runs, repeats)


def measure_sweep(repeats: int, sparsities: int = 8) -> dict[str, Any]:
    """Times the steps of several perceptrons at once, each with its own sparsity."""
    rng = np.random.default_rng(0)
    images = rng.random((128, 784), np.float32)
    batch = (images, rng.integers(0, 10, 128))
    model = linen.Sequential([linen.Dense(256), linen.relu, linen.Dense(10)])
    loss = cross_entropy(model)
    params = model.init(jax.random.key(0), images[:1])
    adam = optax.adam(1e-3)
    targets = jnp.linspace(0.5, 0.95, sparsities)

    def repeated(leaf: jax.Array) -> jax.Array:
        return jnp.stack([leaf] * sparsities) if leaf.ndim else leaf

    def run(chain: Callable[[jax.Array], optax.GradientTransformation]) -> Any:
        state = chain(targets[0]).init(params)
        axes = jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)
        swept = jax.vmap(
            lambda target, *carry: _step(chain(target), loss, batch)(*carry),
            in_axes=(0, 0, axes),
            out_axes=(0, axes),
        )
        carry = jax.tree.map(repeated, (params, state))
        return _run(lambda *carry: swept(targets, *carry), carry)

    runs = [
        run(lambda _: adam),
        run(lambda target: optax.chain(adam, gp.gradual_prune(_later(target)))),
    ]
    return _compare(f"{sparsities} perceptrons by vmap", params, runs, repeats)


def _later(sparsity: Any) -> gp.SparsitySchedule:
    """A schedule of which no step here is an update step."""
    return gp.one_shot_schedule(sparsity, step=1_000_000)


def _step(
    tx: optax.GradientTransformation, loss: Loss, batch: Any
) -> Callable[..., Any]:
    """One step of training on always the same batch."""

    def step(params: Any, state: Any) -> Any:
        gradients = jax.grad(loss)(params, batch)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def _run(step: Callable[..., Any], carry: tuple[Any, Any]) -> Callable[[], Any]:
    """A function that advances a training by one step each time it is called."""
    compiled = jax.jit(step, donate_argnums=(0, 1))
    carry = jax.tree.map(jnp.copy, carry)

    def advance() -> Any:
        nonlocal carry
        carry = compiled(*carry)
        return carry

    return advance


def _compare(
    name: str, params: Any, runs: list[Callable[[], Any]], repeats: int
) -> dict[str, Any]:
    """The milliseconds of both runs, and the median of their ratios side by side."""
    alone, pruned = timing.in_turns(runs, repeats)
    ratios = [mine / other for mine, other in zip(pruned, alone, strict=True)]
    return {
        "step": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "adam_ms": statistics.median(alone),
        "pruned_ms": statistics.median(pruned),
        "ratio": statistics.median(ratios),
    }
