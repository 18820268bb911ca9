"""Hugging Face's folders, as several tests write them."""

import json

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gradprune_jax._files import open_safetensors

EMBEDDING = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = (f"model-{i:05}-of-00002.safetensors" for i in (1, 2))
METADATA = {"format": "pt"}


def make_shards(seed=0):
    """A model as PyTorch names it, in two files."""
    rng = np.random.default_rng(seed)
    draw = rng.normal
    first = {
        "model.embed_tokens.weight": draw(size=(256, 64)).astype(jnp.bfloat16),
        "model.layers.0.mlp.up_proj.weight": draw(size=(16, 8)).astype(np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(8, np.float32),
    }
    second = {
        "model.layers.1.mlp.up_proj.weight": draw(size=(16, 8)).astype(jnp.bfloat16),
        "model.layers.1.mlp.gate.weight": draw(size=(4, 8)).astype(jnp.float8_e4m3fn),
        "model.position_ids": np.arange(8),
    }
    return {FIRST: first, SECOND: second}


def write_folder(folder, shards, **metadata):
    folder.mkdir()
    places = {name: file for file, arrays in shards.items() for name in arrays}
    size = sum(each.nbytes for arrays in shards.values() for each in arrays.values())
    for file, arrays in shards.items():
        safetensors.numpy.save_file(arrays, folder / file, METADATA)
    metadata = {"total_size": size} | metadata
    document = {"metadata": metadata, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(document))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "pytorch_model.bin").write_bytes(b"the weights once more")
    return folder


def arrays_of(file):
    return {name: np.asarray(each) for name, each in open_safetensors(file)[0].items()}


def same_bytes(one, other):
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()
