"""Wanda and SparseGPT of llm-compressor, run by a Python that has it.

python -m venv peer && peer/bin/pip install llmcompressor
python -m benchmarks.calibrated --peer peer/bin/python

It imports nothing of this repository: weights and inputs come from one file, and the
pruned weights go into another.
"""

import sys

import numpy as np
import torch
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify


def main(given: str, out: str, method: str, sparsity: str, n: str, m: str) -> None:
    """Prune each matrix of a file by one method."""
    arrays, pruned = np.load(given), {}
    for name in sorted({key.rsplit("/", 1)[0] for key in arrays}):
        weight = torch.tensor(arrays[f"{name}/weight"])
        inputs = torch.tensor(arrays[f"{name}/inputs"])
        layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
        layer.weight.data = weight
        pattern = {"prune_n": int(n), "prune_m": int(m)}
        if method == "Wanda":
            rows = wanda_sparsify.make_empty_row_scalars(layer)
            rows, _ = wanda_sparsify.accumulate_row_scalars(inputs, layer, rows, 0)
            new = wanda_sparsify.sparsify_weight(
                layer, {layer: rows}, float(sparsity), **pattern
            )
        else:
            gram = sgpt_sparsify.make_empty_hessian(layer)
            gram, _ = sgpt_sparsify.accumulate_hessian(inputs, layer, gram, 0)
            _, new = sgpt_sparsify.sparsify_weight(  # the loss comes first
                layer,
                {layer: gram},
                float(sparsity),
                block_size=128,
                dampening_frac=0.01,
                preserve_sparsity_mask=False,
                **pattern,
            )
        pruned[name] = new.detach().numpy()
    np.savez(out, **pruned)


with torch.no_grad():
    main(*sys.argv[1:])
