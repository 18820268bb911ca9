"""How long a training step takes to trace and compile: Adam with pruning, and alone.

Shapes are those of published networks; no weight is made. A compiled step of Adam and
the link is compared with one of Adam alone, in one run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradprune_jax as gp

Shape = tuple[int, ...]


def squares() -> dict[str, Shape]:
    """200 matrices of one shape."""
    return {f"layer_{i}": (256, 256) for i in range(200)}


def perceptron() -> dict[str, Shape]:
    """60 layers of one width."""
    return {f"layer_{i}": (512, 512) for i in range(60)}


def resnet_50() -> dict[str, Shape]:
    """He et al., [Deep residual learning](https://arxiv.org/abs/1512.03385), 2015."""
    shapes: dict[str, Shape] = {"stem": (7, 7, 3, 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage_{stage}_block_{block}"
            shapes[f"{name}_reduce"] = (1, 1, inputs, width)
            shapes[f"{name}_conv"] = (3, 3, width, width)
            shapes[f"{name}_expand"] = (1, 1, width, 4 * width)
            if block == 0:
                shapes[f"{name}_shortcut"] = (1, 1, inputs, 4 * width)
            inputs = 4 * width
    return shapes | {"head": (inputs, 1_000)}


def densenet_121() -> dict[str, Shape]:
    """Huang et al., [Densely connected](https://arxiv.org/abs/1608.06993), 2016."""
    shapes: dict[str, Shape] = {"stem": (7, 7, 3, 64)}
    channels = 64
    for block, layers in enumerate([6, 12, 24, 16]):
        for layer in range(layers):
            shapes[f"block_{block}_layer_{layer}_reduce"] = (1, 1, channels, 128)
            shapes[f"block_{block}_layer_{layer}_conv"] = (3, 3, 128, 32)
            channels += 32
        if block < 3:
            shapes[f"transition_{block}"] = (1, 1, channels, channels // 2)
            channels //= 2
    return shapes | {"head": (channels, 1_000)}


def bert_base() -> dict[str, Shape]:
    """Devlin et al., [BERT](https://arxiv.org/abs/1810.04805), 2018."""
    shapes: dict[str, Shape] = {"embedding": (30_522, 768)}
    for layer in range(12):
        for part in ("query", "key", "value"):
            shapes[f"layer_{layer}_{part}"] = (768, 12, 64)
        shapes[f"layer_{layer}_out"] = (12, 64, 768)
        shapes[f"layer_{layer}_up"] = (768, 3_072)
        shapes[f"layer_{layer}_down"] = (3_072, 768)
    return shapes


def decoder() -> dict[str, Shape]:
    """28 layers of the shapes of Qwen3-0.6B, each with parameters of its own."""
    shapes: dict[str, Shape] = {"embedding": (151_936, 1_024)}
    for layer in range(28):
        for part, shape in _DECODER_LAYER.items():
            shapes[f"layer_{layer}_{part}"] = shape
    return shapes


def decoder_scanned() -> dict[str, Shape]:
    """The same, the layers stacked along the first axis."""
    return {part: (28, *shape) for part, shape in _DECODER_LAYER.items()}


_DECODER_LAYER: dict[str, Shape] = {
    "query": (1_024, 2_048),
    "key": (1_024, 1_024),
    "value": (1_024, 1_024),
    "out": (2_048, 1_024),
    "gate": (1_024, 3_072),
    "up": (1_024, 3_072),
    "down": (3_072, 1_024),
}

# By name: the shapes, and the fields of the rule.
TREES: dict[str, tuple[Callable[[], dict[str, Shape]], dict[str, Any]]] = {
    "200 x 256 x 256": (squares, {}),
    "60 x 512 x 512": (perceptron, {}),
    "60 x 512 x 512, global": (perceptron, {"allocation": "global"}),
    "60 x 512 x 512, 2:4": (perceptron, {"structure": gp.NM(2, 4)}),
    "ResNet-50": (resnet_50, {}),
    "DenseNet-121": (densenet_121, {}),
    "BERT-base": (bert_base, {}),
    "decoder of 28 layers": (decoder, {}),
    "the same, scanned": (decoder_scanned, {"stack_axis": 0}),
}


def measure(
    name: str, shapes: dict[str, Shape], fields: dict[str, Any]
) -> dict[str, Any]:
    """Traces and compiles both steps once, in turns."""
    final = 0.5 if "structure" in fields else 0.9
    schedule = gp.polynomial_schedule(final, 0, 1_000)
    params = {
        path: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for path, shape in shapes.items()
    }
    adam = optax.adam(1e-3)
    alone = _compile(adam, params)
    pruned = _compile(optax.chain(adam, gp.gradual_prune(schedule, **fields)), params)
    added = {key: pruned[key] - alone[key] for key in alone}
    seconds = added["trace_s"] + added["compile_s"]
    return {
        "tree": name,
        "leaves": len(shapes),
        "shapes": len(set(shapes.values())),
        "adam_s": alone["trace_s"] + alone["compile_s"],
        "added_trace_s": added["trace_s"],
        "added_compile_s": added["compile_s"],
        "added_ms_per_leaf": 1e3 * seconds / len(shapes),
        "added_fusions": added["fusions"],
        "added_kernels": added["kernels"],
    }


def _compile(tx: optax.GradientTransformation, params: Any) -> dict[str, float]:
    """How long a step takes to trace and to compile, and how many kernels it has."""
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(lambda updates, state, params: tx.update(updates, state, params))
    start = time.perf_counter()
    lowered = step.lower(params, state, params)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    text = compiled.as_text()
    return {
        "trace_s": traced - start,
        "compile_s": done - traced,
        "fusions": len(re.findall(r" fusion\(", text)),
        "kernels": len(different_kernels(text)),
    }


def different_kernels(program: str) -> set[str]:
    """The fused computations of a program, equal ones once, without their names."""
    bodies = re.findall(
        r"\n%?(?:fused|wrapped)_\S+ \([^\n]*\{\n(.*?)\n\}", program, re.S
    )
    return {re.sub(r", metadata=\{.*?\}|%[\w.\-]+", "", body) for body in bodies}
