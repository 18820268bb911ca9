"""Commands on a small checkpoint, as several tests run them."""

import jax.numpy as jnp
import numpy as np
from click.testing import CliRunner

from gradprune_jax import _cli, export


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 4, 16)).astype(np.float32)},
        "head": {
            "bias": np.ones(10, np.float32),
            "kernel": rng.normal(size=(64, 10)).astype(jnp.bfloat16),
        },
        "steps": np.arange(3),
    }


PARAMS = make_params()


def save_checkpoint(folder):
    file = folder / "model.safetensors"
    export.save_sparse(file, PARAMS)
    return file


def invoke(*arguments):
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        _cli.build(), [*map(str, arguments)]
    )


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout
