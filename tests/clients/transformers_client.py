# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "transformers>=4.50", "torch>=2.6", "accelerate", "click>=8.2", "rich>=13.7",
#   "matplotlib>=3.9", "safetensors>=0.5", "zstandard>=0.23",
#   "orbax-checkpoint>=0.11.20",
# ]
# ///
"""transformers: Llama in several files, pruned by the command, loaded by theirs."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

import gradprune_jax as gp
from tests.clients import harness

TOKENS = torch.arange(24).reshape(2, 12)
WHERE = ".*(proj|embed_tokens|lm_head)/weight"


def llama(dtype=torch.float32, tie=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tie,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(dtype)


def gradprune(*arguments):
    command = [sys.executable, "-m", "gradprune_jax", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def masked_by_hand(model, sparsity):
    """The same weights to zero by sorting, in torch: the largest stay."""
    for weight in model.parameters():
        if weight.ndim == 2:
            flat = weight.detach().abs().flatten().float()
            kept = flat.numel() - round(sparsity * flat.numel())
            order = torch.argsort(flat, descending=True, stable=True)[:kept]
            mask = torch.zeros(flat.numel(), dtype=bool)
            mask[order] = True
            with torch.no_grad():
                weight[~mask.reshape(weight.shape)] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [False, True])
def test_the_outputs_are_those_of_masks_by_hand(tmp_path, dtype, tie):
    model, folder, out = llama(dtype, tie), tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder, max_shard_size="100KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    gradprune("prune", folder, out, "--sparsity", 0.75, "--where", WHERE)
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype=dtype
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    written = json.loads((out / "model.safetensors.index.json").read_text())
    assert written["weight_map"] == index["weight_map"]
    assert written["metadata"]["total_size"] == index["metadata"]["total_size"]
    dense = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = masked_by_hand(dense, 0.75)
    for (name, ours), (_, theirs) in zip(
        loaded.named_parameters(), expected.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert torch.equal(logits(loaded), logits(expected))


def test_groups_along_the_inputs_and_files_that_are_packed(tmp_path):
    folder, out, packed, back = (tmp_path / name for name in ("a", "b", "c", "d"))
    llama().save_pretrained(folder, max_shard_size="100KB")
    options = ("--structure", "2:4", "--where", ".*proj/weight")
    gradprune("prune", folder, out, *options)
    loaded = transformers.LlamaForCausalLM.from_pretrained(out)
    for name, weight in loaded.named_parameters():
        if "proj" in name:
            groups = weight.detach().reshape(weight.shape[0], -1, 4)  # (out, in)
            assert ((groups != 0).sum(dim=2) == 2).all(), name
    gradprune("pack", out, packed)
    gradprune("unpack", packed, back)
    again = transformers.LlamaForCausalLM.from_pretrained(back)
    assert torch.equal(logits(again), logits(loaded))
    said = json.loads(gradprune("report", back, "--json", "--no-compress"))
    assert said["total"]["nonzero"] == sum(
        int((weight != 0).sum()) for weight in loaded.parameters()
    )
    params = {
        name.replace(".", "/"): weight.detach().numpy()
        for name, weight in loaded.named_parameters()
    }
    rule = gp.Rule(
        gp.one_shot_schedule(0.5, 0),
        where=".*proj/weight",
        structure=gp.NM(2, 4, axis=1),
    )
    harness.record(
        "transformers",
        "Llama in several files",
        "gradprune prune FOLDER OUT --structure 2:4",
        gp.plan([rule], params),
    )
