# /// script
# requires-python = ">=3.11"
# dependencies = ["google-tunix>=0.1.7"]
# ///
"""tunix: a small Llama 3, trained, saved and restored by PeftTrainer."""

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.sft import metrics_logger, peft_trainer
from tunix.sft import utils as sft_utils

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
LINK = (
    "optax.chain(optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3), "
    "gp.gradual_prune(schedule))"
)


def model_of(seed=0):
    config = llama.ModelConfig(
        num_layers=2, vocab_size=96, embed_dim=64, hidden_dim=128, num_heads=4,
        head_dim=16, num_kv_heads=2, rope_theta=10_000, norm_eps=1e-5,
    )  # fmt: skip
    return llama.Llama3(config, rngs=nnx.Rngs(seed))


def adamw():
    return optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)


def chain():
    return optax.chain(adamw(), gp.gradual_prune(SCHEDULE))


def trainer_of(model, tx, max_steps, folder=None, micro_batches=None):
    """The trainer, as the examples of tunix set it up."""
    every_step = ocp.checkpoint_managers.FixedIntervalPolicy(1)
    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1_000,
        max_steps=max_steps,
        gradient_accumulation_steps=micro_batches,
        checkpoint_root_directory=folder and str(folder),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_decision_policy=every_step
        ),
    )
    logger = metrics_logger.MetricsLogger()
    trainer = peft_trainer.PeftTrainer(model, tx, config, metrics_logger=logger)
    return trainer.with_gen_model_input_fn(inputs_of)


def inputs_of(batch):
    tokens, mask = batch.input_tokens, batch.input_mask
    return {
        "input_tokens": tokens,
        "input_mask": mask,
        "positions": sft_utils.build_positions_from_mask(mask),
        "attention_mask": sft_utils.make_causal_attn_mask(mask),
    }


def batches(count):
    for seed in range(count):
        tokens = np.random.default_rng(seed).integers(1, 96, (8, 16))
        yield peft_trainer.TrainingInput(
            input_tokens=tokens, input_mask=np.ones((8, 16), bool)
        )


def params_of(trainer):
    return nnx.state(trainer.model, nnx.Param)


def check_plan(planned):
    """Embedding, matrices and softmax are taken; only norms stay dense."""
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    names = ("input_layernorm", "post_attention_layernorm")
    norms = [f"layers/{layer}/{name}/w" for layer in (0, 1) for name in names]
    assert dense == {"final_norm/w", *norms}
    assert len(planned.leaves) - len(dense) == 1 + 2 * 7 + 1


def test_peft_trainer(tmp_path):
    planned = gp.plan(SCHEDULE, nnx.state(model_of(), nnx.Param), total_steps=12)
    check_plan(planned)

    def first_step(tx):
        trainer = trainer_of(model_of(), tx, 1)

        def run():
            trainer.train(batches(1))
            return jax.tree.leaves(params_of(trainer))

        return harness.seconds(run)

    without, with_link = first_step(adamw()), first_step(chain())

    trainer = trainer_of(model_of(), chain(), 12, tmp_path)
    trainer.train(batches(12))
    assert trainer.train_steps == 12
    harness.check_exact(params_of(trainer), trainer.optimizer, planned)
    rates = trainer.metrics_logger.get_metric_history("", "learning_rate", "train")
    np.testing.assert_allclose(rates, 1e-3, rtol=1e-6)

    # A new trainer restores what the last one saved, by itself.
    resumed = trainer_of(model_of(1), chain(), 14, tmp_path)
    assert resumed.train_steps == 12
    assert harness.same(params_of(resumed), params_of(trainer))
    before, after = (
        nnx.state(t.optimizer, nnx.optimizer.OptState) for t in (trainer, resumed)
    )
    assert harness.same(before, after)
    resumed.train(batches(14))
    assert resumed.train_steps == 14
    assert not harness.same(params_of(resumed), params_of(trainer))
    harness.check_exact(params_of(resumed), resumed.optimizer, planned)
    harness.record(
        "google-tunix", "Llama 3 (2 layers), PeftTrainer", LINK, planned,
        without=without, with_link=with_link,
    )  # fmt: skip


@nnx.jit(static_argnums=0)
def sharded_model(seed):
    model = model_of(seed)
    state = nnx.state(model)
    specs = nnx.get_partition_spec(state)
    nnx.update(model, jax.lax.with_sharding_constraint(state, specs))
    return model


def test_micro_batches_on_a_mesh(tmp_path):
    """Saved and restored on a mesh, with the chain inside of optax.MultiSteps.

    The checkpoint manager restores no optax.MaskedNode on a mesh, so the last rule
    gives masks to the norms too, in which all is kept.
    """
    rules = [
        gp.Rule(SCHEDULE),
        gp.Rule(gp.one_shot_schedule(0.0, step=2), where=".*norm/w"),
    ]
    planned = gp.plan(rules, nnx.state(model_of(), nnx.Param), total_steps=12)

    def trainer_on_mesh(seed, max_steps):
        tx = optax.chain(adamw(), gp.gradual_prune(rules))
        model = sharded_model(seed)
        return trainer_of(model, tx, max_steps, tmp_path, micro_batches=2)

    with jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tp")):
        trainer = trainer_on_mesh(0, 12)
        trainer.train(batches(24))
        assert trainer.train_steps == 12
        harness.check_exact(params_of(trainer), trainer.optimizer, planned)
        kernel = trainer.model.layers[0].mlp.gate_proj.kernel.get_value()
        masks = gp.get_masks(trainer.optimizer)
        mask = masks["layers"][0]["mlp"]["gate_proj"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (16, 64)
        assert mask.sharding.is_equivalent_to(kernel.sharding, 2)

        resumed = trainer_on_mesh(1, 13)
        assert harness.same(params_of(resumed), params_of(trainer))
        resumed.train(batches(26))
        assert resumed.train_steps == 13
        harness.check_exact(params_of(resumed), resumed.optimizer, planned)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(optax.adam(1e-3), gp.gradual_prune(SCHEDULE)),
        optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    ],
    ids=["gradual_prune", "optax.masked"],
)
def test_no_masked_node_is_restored_on_a_mesh(tx, tmp_path):
    """Also of a transformation of optax itself: the first of these to pass is news."""
    with jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tp")):
        trainer_of(sharded_model(0), tx, 1, tmp_path).train(batches(1))
        with pytest.raises(ValueError, match="MaskedNode"):
            trainer_of(sharded_model(1), tx, 2, tmp_path)


@pytest.mark.parametrize(
    ("form", "logged"),
    [
        (chain, True),
        (lambda: gp.with_gradual_prune(adamw(), SCHEDULE), True),
        (lambda: optax.chain(optax.adamw(1e-3), gp.gradual_prune(SCHEDULE)), False),
        (
            lambda: optax.chain(
                optax.clip_by_global_norm(1.0), adamw(), gp.gradual_prune(SCHEDULE)
            ),
            False,
        ),
    ],
)
def test_which_forms_log_the_learning_rate(form, logged):
    """The trainer looks for hyperparameters up to the first link without a state."""
    trainer = trainer_of(model_of(), form(), 11)
    trainer.train(batches(11))
    has = trainer.metrics_logger.metric_exists("", "learning_rate", "train")
    assert has == logged
    gp.check_pruned(params_of(trainer), trainer.optimizer)
