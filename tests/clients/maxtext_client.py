# /// script
# requires-python = ">=3.12"
# dependencies = [
#   "maxtext>=0.2.5", "absl-py", "aqtp", "array-record",
#   "cloud-accelerator-diagnostics", "datasets", "drjax",
#   "google-cloud-mldiagnostics", "grain[parquet]", "huggingface_hub", "jaxtyping",
#   "jinja2", "jsonlines", "ml-collections", "ml-goodput-measurement", "omegaconf",
#   "pathwaysutils", "pillow", "protobuf", "pydantic", "qwix", "sentencepiece",
#   "sympy", "tensorboardx", "tiktoken", "tokamax", "transformers",
# ]
# ///
"""MaxText: a small decoder in its own training loop, sharded over eight devices.

Its wheel declares no dependencies for CPU, so the comment above names those that its
training loop imports.
"""

import dataclasses
import pathlib

import maxtext
import optax
import pytest
from flax import nnx
from maxtext.configs import pyconfig
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train import train
from maxtext.utils import train_utils

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=1, end_step=7, every=3)
# Layers are scanned, and lie along the second axis of a kernel (`param_scan_axis`).
RULES = [
    gp.Rule(None, where="token_embedder/.*|decoder/logits_dense/.*"),
    gp.Rule(SCHEDULE, where="decoder/layers/.*/kernel", stack_axis=1),
]
LINK = "optax.chain(get_optimizer(...), gp.gradual_prune(rules))"
DENSE = {
    "decoder/decoder_norm/scale",
    "decoder/layers/post_self_attention_layer_norm/scale",
    "decoder/layers/pre_self_attention_layer_norm/scale",
    "decoder/logits_dense/kernel",
    "token_embedder/embedding",
}


def configured(folder, **settings):
    """The settings of `base.yml` but for a small model, made-up data and no cloud."""
    small = {
        "run_name": "small", "base_output_directory": folder, "hardware": "cpu",
        "base_emb_dim": 64, "base_num_query_heads": 4, "base_num_kv_heads": 2,
        "base_mlp_dim": 128, "base_num_decoder_layers": 2, "head_dim": 16,
        "vocab_size": 256, "max_target_length": 32, "per_device_batch_size": 1,
        "dataset_type": "synthetic", "attention": "dot_product", "steps": 9,
        "checkpoint_period": 4, "async_checkpointing": False, "jax_cache_dir": "",
        "enable_goodput_recording": False, "monitor_goodput": False,
        "log_config": False, "sharding_tolerance": 1.0,
        "skip_jax_distributed_system": True,
    }  # fmt: skip
    base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
    given = [f"{name}={value}" for name, value in (small | settings).items()]
    return pyconfig.initialize(["train", str(base), *given])


def with_link(get_optimizer):
    """MaxText's factory with the link at the end of what it returns."""

    def get_pruning_optimizer(*args, **kwargs):
        tx = get_optimizer(*args, **kwargs)
        return optax.chain(tx, gp.gradual_prune(RULES))

    return get_pruning_optimizer


@pytest.fixture
def pruning(monkeypatch):
    """What a user's own script does before it calls `train`."""
    made = with_link(optimizers.get_optimizer)
    monkeypatch.setattr(optimizers, "get_optimizer", made)


def restored(folder, **settings):
    """The train state that MaxText sets up from the last checkpoint of a folder.

    The seed is another one, so that a state that was made anew would be seen.
    """
    config = configured(folder, steps=99, init_weights_seed=1, **settings)
    return train_utils.setup_train_loop(config, None)[-1]


def params_of(state):
    return nnx.state(state.model, nnx.Param)


def first_step(folder):
    """The seconds in which a loop of one step is compiled and run."""
    config = configured(folder, steps=1, enable_checkpointing=False)
    return harness.seconds(lambda: train.train_loop(config, None))


def test_a_decoder(tmp_path, monkeypatch):
    without = first_step(tmp_path / "without")
    own = optimizers.get_optimizer
    monkeypatch.setattr(optimizers, "get_optimizer", with_link(own))
    with_the_link = first_step(tmp_path / "with")

    trained = train.train_loop(configured(tmp_path / "run"), None)
    # The loop returns a state without the classes in it, so the masks are read from the
    # train state that is set up from the checkpoint.
    state = restored(tmp_path / "run")
    assert int(state.optimizer.step[...]) == 9
    assert harness.same(params_of(state), trained.model.filter(nnx.Param))
    assert harness.same(nnx.state(state.optimizer), trained.optimizer)
    params, opt_state = params_of(state), state.optimizer.opt_state
    planned = gp.plan(RULES, params, total_steps=9)
    assert {leaf.path for leaf in planned.leaves if leaf.rule is None} == DENSE
    harness.check_exact(params, opt_state, planned)
    kernel = params["decoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert kernel.sharding.spec[0] == "fsdp"

    config = configured(tmp_path / "run", steps=13, init_weights_seed=1)
    resumed = train.train_loop(config, None)
    again = restored(tmp_path / "run")
    assert int(again.optimizer.step[...]) == 13
    assert harness.same(params_of(again), resumed.model.filter(nnx.Param))
    harness.check_exact(params_of(again), again.optimizer.opt_state, planned)
    masks = gp.get_masks(again.optimizer.opt_state)
    assert harness.same(masks, gp.get_masks(opt_state))
    assert not harness.same(params_of(again), params)

    harness.record(
        "maxtext", "decoder, train_loop on 8 devices", LINK, planned,
        without=without, with_link=with_the_link,
    )  # fmt: skip


@pytest.mark.usefixtures("pruning")
def test_an_optimizer_that_is_sharded_over_data(tmp_path):
    """Zero-1: MaxText finds the moments in the nested chain."""
    settings = {
        "ici_data_parallelism": 8, "ici_fsdp_parallelism": 1,
        "shard_optimizer_over_data": True,
    }  # fmt: skip
    trained = train.train_loop(configured(tmp_path, **settings), None)
    state = restored(tmp_path, **settings)
    assert harness.same(nnx.state(state.optimizer), trained.optimizer)
    planned = gp.plan(RULES, params_of(state), total_steps=9)
    harness.check_exact(params_of(state), state.optimizer.opt_state, planned)
    adam, pruning = state.optimizer.opt_state
    for tree in (adam[0].mu, pruning.masks):
        kernel = tree["decoder"]["layers"]["mlp"]["wi_0"]["kernel"]
        assert kernel[...].sharding.spec[0] == "data"


@pytest.mark.usefixtures("pruning")
def test_steps_that_are_skipped(tmp_path):
    """The link counts, and prunes, in the steps that `skip_step_on_spikes` skips."""
    settings = {
        "skip_step_on_spikes": True, "skip_step_interval": 4,
        "skip_step_scaling_factor": -100.0,  # every step is a spike
    }  # fmt: skip
    train.train_loop(configured(tmp_path, **settings), None)
    state = restored(tmp_path, **settings)
    spikes, pruning = state.optimizer.opt_state
    assert bool(spikes["is_skipped"][...])
    assert int(spikes["inner_state"][0].count[...]) == 2  # before it has a history
    assert int(pruning.count[...]) == 9
    planned = gp.plan(RULES, params_of(state), total_steps=9)
    harness.check_exact(params_of(state), state.optimizer.opt_state, planned)


def test_steps_that_are_skipped_do_not_count(tmp_path, monkeypatch):
    """The link before `skip_step_on_spikes`, which knows of it then."""
    settings = {
        "skip_step_on_spikes": True, "skip_step_interval": 4,
        "skip_step_scaling_factor": -100.0,  # every step is a spike
    }  # fmt: skip
    window = gp.polynomial_schedule(0.9, begin_step=0, end_step=1, every=1)
    rules = [RULES[0], dataclasses.replace(RULES[1], schedule=window)]
    theirs = optimizers.skip_step_on_spikes
    monkeypatch.setattr(
        optimizers,
        "skip_step_on_spikes",
        lambda tx, **fields: theirs(optax.chain(tx, gp.gradual_prune(rules)), **fields),
    )
    train.train_loop(configured(tmp_path, **settings), None)
    state = restored(tmp_path, **settings)
    spikes = state.optimizer.opt_state
    assert bool(spikes["is_skipped"][...])
    adam, pruning = spikes["inner_state"]
    assert 2 <= int(pruning.count[...]) == int(adam[0].count[...]) < 9
    planned = gp.plan(rules, params_of(state), total_steps=2)
    harness.check_exact(params_of(state), spikes, planned)


@pytest.mark.usefixtures("pruning")
def test_parameters_that_are_frozen(tmp_path):
    """What `trainable_parameters_mask` freezes is pruned, if the rules say so."""
    settings = {"trainable_parameters_mask": "['.*mlp.*']"}
    train.train_loop(configured(tmp_path, **settings), None)
    state = restored(tmp_path, **settings)
    planned = gp.plan(RULES, params_of(state), total_steps=9)
    harness.check_exact(params_of(state), state.optimizer.opt_state, planned)
    frozen = gp.sparsity(params_of(state))["decoder/layers/self_attention/key/kernel"]
    assert frozen > 0.89
