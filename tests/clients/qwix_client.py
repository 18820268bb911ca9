# /// script
# requires-python = ">=3.11"
# dependencies = ["qwix>=0.1.8", "orbax-checkpoint>=0.11.20"]
# ///
"""qwix: a transformer of nnx, quantized while it trains and afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import qwix
from flax import nnx
from qwix.contrib import gptq

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
LINK = "optax.chain(optax.adamw(3e-3), gp.gradual_prune(schedule))"
VOCABULARY, LENGTH, FEATURES = 64, 16, 32


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention_norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4, FEATURES, decode=False, deterministic=True, rngs=rngs
        )
        self.norm = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.up = nnx.Linear(FEATURES, 4 * FEATURES, rngs=rngs)
        self.down = nnx.Linear(4 * FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x):
        x += self.attention(self.attention_norm(x))
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Embed(VOCABULARY, FEATURES, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(FEATURES, VOCABULARY, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


TOKENS = (7 * jnp.arange(8)[:, None] + jnp.arange(LENGTH)) % VOCABULARY  # they count


@nnx.jit
def train_step(model, optimizer):
    def loss_fn(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            model(TOKENS)[:, :-1], TOKENS[:, 1:]
        )
        return losses.mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


def link():
    return optax.chain(optax.adamw(3e-3), gp.gradual_prune(SCHEDULE))


def trained(model, tx, updates):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    took = harness.seconds(lambda: train_step(model, optimizer))
    losses = [train_step(model, optimizer) for _ in range(updates - 1)]
    return optimizer, took, losses


def quantized_weights(model):
    """The quantized arrays of a model, by the path of the weight."""
    paths = {}
    for path, module in nnx.iter_modules(model):
        for name, value in vars(module).items():
            if hasattr(value, "array") and hasattr(value, "how"):
                array = jax.tree.map(
                    lambda leaf: leaf[...] if isinstance(leaf, nnx.Variable) else leaf,
                    value.array,
                    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
                )
                paths["/".join(map(str, (*path, name)))] = array
    return paths


def masks_by_path(model, optimizer):
    params = nnx.state(model, nnx.Param)
    found = harness.named_with_masks(params, gp.get_masks(optimizer))
    return {path: np.asarray(mask) for path, _, mask in found}


@pytest.mark.parametrize("qtype", ["int8", "int4"])
def test_training_with_quantized_weights(qtype, tmp_path):
    rules = [qwix.QuantizationRule(weight_qtype=qtype)]

    def aware():
        plain = Transformer(nnx.Rngs(0))
        return qwix.quantize_model(plain, qwix.QtProvider(rules), TOKENS)

    model = aware()
    planned = gp.plan(SCHEDULE, nnx.state(model, nnx.Param), total_steps=40)
    missed = [leaf.path for leaf in planned.leaves if leaf.is_missed]
    assert len(missed) == 6  # the biases of query, key and value have two axes
    assert all(path.endswith("/bias") for path in missed)
    _, without, _ = trained(aware(), optax.adamw(3e-3), 1)
    optimizer, with_link, losses = trained(model, link(), 40)
    assert losses[-1] < losses[SCHEDULE.end_step]  # the sparse model learns
    harness.check_exact(nnx.state(model, nnx.Param), optimizer, planned)

    saved = nnx.state((model, optimizer))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
    again = aware()
    optimizer_again = nnx.Optimizer(again, link(), wrt=nnx.Param)
    target = jax.tree.map(
        ocp.utils.to_shape_dtype_struct, nnx.state((again, optimizer_again))
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "checkpoint", target)
    assert harness.same(restored, saved)
    nnx.update((again, optimizer_again), restored)
    for _ in range(3):
        train_step(again, optimizer_again)
        train_step(model, optimizer)
    harness.check_exact(nnx.state(again, nnx.Param), optimizer_again, planned)
    assert harness.same(nnx.state(again), nnx.state(model))

    masks = masks_by_path(model, optimizer)
    served = qwix.quantize_model(model, qwix.PtqProvider(rules), TOKENS)
    check_quantized(served, masks)
    np.testing.assert_allclose(served(TOKENS), model(TOKENS), atol=1e-4)
    harness.record(
        "qwix", f"transformer of nnx, {qtype} while it trains", LINK, planned,
        without=without, with_link=with_link,
    )  # fmt: skip


def check_quantized(model, masks, zero=0):
    """Asserts that pruned weights are 0, and stored as `zero` or the zero point."""
    arrays = quantized_weights(model)
    pruned = {path: mask for path, mask in masks.items() if path in arrays}
    assert len(pruned) == 2 * 6 + 1  # all but the embedding, which is no product
    for path, mask in pruned.items():
        array = arrays[path]
        mask = mask.reshape(array.shape)
        floats, integers = np.asarray(qwix.dequantize(array)), np.asarray(array.qvalue)
        assert (floats[~mask] == 0).all(), path
        assert not np.signbit(floats[~mask]).any(), path
        code = zero if zero is not None else np.asarray(array.zero_point)
        assert ((integers == code) == (floats == 0)).all(), path


@pytest.mark.parametrize(
    ("qtype", "method", "zero"),
    [
        ("int8", "absmax", 0),
        ("int4", "absmax", 0),
        ("int2", "absmax", 0),
        ("float8_e4m3fn", "absmax", 0),
        ("nf4", "absmax", 7),  # the eighth of its sixteen numbers is 0
        ("int8", "minmax", None),  # the zero point
        ("int4", "minmax", None),
    ],
)
def test_quantizing_after_training(qtype, method, zero):
    model = Transformer(nnx.Rngs(0))
    optimizer, _, _ = trained(model, link(), 40)
    masks = masks_by_path(model, optimizer)
    rule = qwix.QuantizationRule(weight_qtype=qtype, weight_calibration_method=method)
    served = qwix.quantize_model(model, qwix.PtqProvider([rule]), TOKENS)
    check_quantized(served, masks, zero)
    assert np.isfinite(served(TOKENS)).all()


def test_gptq_moves_zeros_and_masks_bring_them_back():
    model = Transformer(nnx.Rngs(0))
    optimizer, _, _ = trained(model, link(), 40)
    masks = masks_by_path(model, optimizer)
    where = {"module_path": "blocks/./up", "weight_qtype": "int4"}
    provider = gptq.GptqCalibrationProvider([gptq.GptqRule(**where)])
    calibrated = qwix.quantize_model(model, provider, TOKENS)
    calibrated(TOKENS)
    rule = qwix.QuantizationRule(**where)
    served = qwix.quantize_model(model, qwix.PtqProvider([rule]), TOKENS)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    stats = nnx.to_pure_dict(nnx.state(calibrated, qwix.QuantStat))
    new = gptq.quantize_params(params, served, stats, gptq_block_size=16)
    nnx.update(served, new)
    moved = 0
    arrays = quantized_weights(served)
    assert sorted(arrays) == ["blocks/0/up/kernel", "blocks/1/up/kernel"]
    for path, array in arrays.items():
        floats, mask = np.asarray(qwix.dequantize(array)), masks[path]
        moved += (floats[~mask] != 0).sum()
        masked = np.asarray(gp.apply_masks(floats, mask))
        assert (masked[~mask] == 0).all()
        assert (masked[mask] == floats[mask]).all()
    assert moved > 0
