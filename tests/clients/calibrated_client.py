# /// script
# requires-python = ">=3.12"
# dependencies = ["google-tunix>=0.1.7", "equimo>=2.7.0"]
# ///
"""Pruning with data: models of tunix and equimo, and what of them stays dense."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equimo.vision.models.convnext import ConvNeXt
from equimo.vision.models.vit import VisionTransformer
from flax import nnx
from tunix.models.gemma3 import model as gemma
from tunix.models.llama3 import model as llama
from tunix.models.qwen3 import model as qwen

import gradprune_jax as gp
from tests.clients import harness

SPARSITY = 0.5
LINK = "gp.prune_calibrated(fn, params, batches, 0.5)"
EMBEDDING = "embedder/input_embedding"
POSITIONS = "global_pos_embed/weight"

SIZES = {
    "num_layers": 2, "embed_dim": 32, "hidden_dim": 64, "num_heads": 4, "head_dim": 8,
    "num_kv_heads": 2,
}  # fmt: skip
QWEN = {"vocab_size": 96, "rope_theta": 10_000, "norm_eps": 1e-6, **SIZES}


def llama_3():
    return llama.Llama3(llama.ModelConfig(**QWEN), rngs=nnx.Rngs(0))


def qwen_3(**experts):
    return qwen.Qwen3(qwen.ModelConfig(**QWEN, **experts), rngs=nnx.Rngs(0))


def qwen_3_with_experts():
    return qwen_3(num_experts=4, num_experts_per_tok=2)


def gemma_3():
    config = gemma.ModelConfig(num_embed=96, sliding_window_size=8, **SIZES)
    return gemma.Gemma3(config, rngs=nnx.Rngs(0))


def traced(model):
    """A function of the parameters and a batch of tokens, and the parameters."""
    graph, params = nnx.split(model)
    # Some kernels of tunix begin as zeros, for their values come from a file.
    keys = iter(jax.random.split(jax.random.key(0), 1_000))
    params = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(next(keys), x.shape, x.dtype), params
    )

    def fn(params, tokens):
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        causal = jnp.broadcast_to(
            jnp.tril(jnp.ones((length, length), bool)), (batch, length, length)
        )
        return nnx.merge(graph, params)(tokens, positions, None, causal)[0]

    return fn, params


def check(
    package, what, fn, params, batches, matrices, dense=None, reason="", odd=frozenset()
):
    """All matrices are pruned to the exact count but one, which can't be.

    Returns the pruned parameters, and what stays dense beside norms, biases and scales.
    """
    if dense is not None:
        with pytest.raises(ValueError, match=f"'{dense}': .*{reason}"):
            gp.prune_calibrated(fn, params, batches, SPARSITY)
    rules = [gp.Rule(gp.one_shot_schedule(SPARSITY, 0))]
    if dense is not None:
        rules.insert(0, gp.Rule(None, where=dense))
    planned = gp.plan(rules, params)
    pruned, masks = gp.prune_calibrated(fn, params, batches, rules)

    leaves = {leaf.path: leaf for leaf in planned.leaves if leaf.rule is not None}
    assert len(leaves) == matrices
    triples = harness.named_with_masks(pruned, masks)
    assert {path for path, _, _ in triples} == leaves.keys()
    for path, _, mask in triples:
        if path not in odd:
            assert 2 * mask.sum() == mask.size, path
            assert mask.sum() == leaves[path].kept
    for path, weights, mask in triples:
        zeros = np.asarray(weights, np.float32)[~np.asarray(mask)]
        assert (zeros == 0).all(), path
        assert not np.signbit(zeros).any(), path
    assert np.isfinite(np.asarray(fn(pruned, batches[0]), np.float32)).all()
    harness.record(package, what, LINK, planned)
    names = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    left = {name for name in names if not name.endswith(("bias", "gamma"))}
    return pruned, {name for name in left if "norm" not in name}


@pytest.mark.parametrize(
    ("make", "reason", "matrices"),
    [
        (llama_3, "gather", 2 * 7 + 1),
        (qwen_3, "gather", 2 * 7 + 1),
        (qwen_3_with_experts, "gather", 2 * 8 + 1),
        (gemma_3, "read more than once, by gather .* and by dot_general", 2 * 6),
    ],
)
def test_tunix(make, reason, matrices):
    """The embedding is looked up, in Gemma it is tied to the softmax too."""
    fn, params = traced(make())
    tokens = [jax.random.randint(jax.random.key(i), (4, 16), 0, 96) for i in (1, 2)]
    what = make.__name__.replace("_", " ").capitalize() + ", at once with data"
    _, left = check(
        "google-tunix", what, fn, params, tokens, matrices, EMBEDDING, reason
    )
    assert left == {EMBEDDING}


def images():
    return [jax.random.normal(jax.random.key(i), (4, 3, 32, 32)) for i in (1, 2)]


def of_arrays(model):
    params, others = eqx.partition(model, eqx.is_inexact_array)

    def fn(params, batch):
        whole = eqx.combine(params, others)
        return jax.vmap(lambda image: whole(image, None, True))(batch)

    return fn, params


def test_vision_transformer():
    """The table of positions is added, so no product reads it."""
    model = VisionTransformer(
        img_size=32, in_channels=3, dim=32, patch_size=8, num_heads=[4], depths=[2],
        num_classes=10, key=jax.random.key(0),
    )  # fmt: skip
    what = "vision transformer, at once with data"
    fn, params = of_arrays(model)
    matrices = 1 + 2 * 4 + 1
    _, left = check("equimo", what, fn, params, images(), matrices, POSITIONS, "add")
    assert left == {POSITIONS, "cls_token", "reg_tokens"}


def test_convnext():
    """Depthwise kernels are pruned too, each with the patches of its channel.

    Weights are counted in each output: of the 49 of a depthwise kernel 24 go, for 24.5
    is rounded to the even number.
    """
    model = ConvNeXt(
        in_channels=3, depths=[1, 1], dims=[16, 32], num_classes=10,
        key=jax.random.key(0),
    )  # fmt: skip
    depthwise = {f"blocks/{stage}/blocks/0/dwconv/weight" for stage in (0, 1)}
    fn, params = of_arrays(model)
    what = "ConvNeXt, at once with data"
    pruned, left = check("equimo", what, fn, params, images(), 2 * 4 + 1, odd=depthwise)
    assert not left
    for stage in (0, 1):
        kernel = pruned.blocks[stage].blocks[0].dwconv.weight
        assert ((kernel != 0).sum(axis=(1, 2, 3)) == 25).all()
