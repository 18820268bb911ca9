# /// script
# requires-python = ">=3.12"
# dependencies = ["marin-levanter>=0.2.227.dev0"]
# ///
"""Levanter and haliax: a small Llama of named arrays, trained and saved by Trainer."""

import dataclasses

import haliax as hax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from levanter import tracker as levanter_tracker
from levanter.callbacks.watch import WatchConfig
from levanter.checkpoint import CheckpointerConfig, latest_checkpoint_path
from levanter.data.dataset import ListAsyncDataset
from levanter.models.llama import LlamaConfig
from levanter.models.lm_model import LmExample
from levanter.optim.config import AdamConfig, OptimizerConfig
from levanter.optim.model_averaging import EmaModelAveragingConfig
from levanter.tracker.tracker import NoopConfig, NoopTracker
from levanter.trainer import Trainer, TrainerConfig
from levanter.trainer_state import trainables_only

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
RULES = [
    gp.Rule(SCHEDULE, where="transformer/layers/.*_proj/weight/.*", stack_axis=0),
    gp.Rule(SCHEDULE),
]
LINK = "components.append(gp.gradual_prune(rules))"
VOCAB = hax.Axis("vocab", 96)
MODEL = LlamaConfig(
    max_seq_len=16, hidden_dim=64, intermediate_dim=128, num_layers=2, num_heads=4,
    num_kv_heads=2, gradient_checkpointing=False,
)  # fmt: skip


@OptimizerConfig.register_subclass("pruned_adam")
@dataclasses.dataclass(frozen=True)
class PrunedAdamConfig(OptimizerConfig):
    """Adam as Levanter builds it, with the link at the end of its components."""

    max_grad_norm: float = 1.0
    rules: tuple[gp.Rule, ...] = tuple(RULES)

    def build(self, num_train_steps):
        def optimizer(learning_rate):
            components = [
                optax.clip_by_global_norm(self.max_grad_norm),
                optax.scale_by_adam(0.9, 0.95, 1e-8),
                optax.add_decayed_weights(
                    self.weight_decay, self.build_weight_decay_mask()
                ),
                optax.scale(-learning_rate),
            ]
            if self.rules:
                components.append(gp.gradual_prune(self.rules))
            return optax.chain(*components)

        rate = self.lr_scheduler(num_train_steps)
        return optax.inject_hyperparams(optimizer)(learning_rate=rate)


@OptimizerConfig.register_subclass("wrapped_adam")
@dataclasses.dataclass(frozen=True)
class WrappedAdamConfig(AdamConfig):
    """An optimizer of Levanter with the link around it: the learning rate is hidden."""

    def build(self, num_train_steps):
        inner = super().build(num_train_steps)
        return optax.chain(inner, gp.gradual_prune(RULES))


class LoggedNames(NoopTracker):
    """Remembers the names of all that is logged."""

    def __init__(self):
        self.names = set()

    def log(self, metrics, *, step, commit=None):
        self.names.update(metrics)


def loss_fn(model, example, *, key=None):
    return model.compute_next_token_loss(example, key=key)


def dataset():
    tokens = np.random.default_rng(0).integers(0, 96, (256, 16))
    rows = [hax.named(jnp.asarray(row, jnp.int32), "position") for row in tokens]
    return ListAsyncDataset([LmExample.causal(row) for row in rows])


def train(folder, steps, optimizer=None, **settings):
    """As `train_lm` does it; returns the state at the start, at the end and the log."""
    config = TrainerConfig(
        id="run", log_dir=folder / "logs", tracker=NoopConfig(), num_train_steps=steps,
        train_batch_size=8, log_jaxprs=False, log_xla_hlo=False,
        require_accelerator=False,
        checkpointer=CheckpointerConfig(base_path=str(folder), save_interval=None),
        **settings,
    )  # fmt: skip
    log = LoggedNames()
    optimizer = optimizer or PrunedAdamConfig(learning_rate=1e-3, warmup=0.0)
    with levanter_tracker.current_tracker(log):
        tx = optimizer.build(steps)
        with Trainer(config, tx, loss_fn) as trainer:
            state = trainer.initial_state(
                jax.random.PRNGKey(1), model_init=lambda: MODEL.build(VOCAB, key=KEY)
            )
            start = jax.tree.map(np.array, state)
            loader = trainer.data_loader(dataset())
            batches = loader.iter_from_step(int(state.step))
            infos = []
            took = harness.seconds(
                lambda: infos.append(trainer.train_step(state, next(batches)))
            )
            info = trainer.train(infos[0].state, batches)
    return start, info.state, log, took


KEY = jax.random.PRNGKey(0)


def first_step(folder, optimizer):
    return train(folder, 1, optimizer)[-1]


def test_trainer(tmp_path):
    planned = gp.plan(RULES, MODEL.build(VOCAB, key=KEY), total_steps=12)
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    names = ("input_layernorm", "post_attention_layernorm")
    norms = [f"transformer/layers/stacked/{name}/weight/0" for name in names]
    assert dense == {"transformer/norm/weight/0", *norms}

    dense_adam = PrunedAdamConfig(learning_rate=1e-3, warmup=0.0, rules=())
    without = first_step(tmp_path / "dense", dense_adam)
    _, state, log, with_link = train(tmp_path, 12)
    assert int(state.step) == 12
    harness.check_exact(state.model, state.opt_state, planned)
    assert "optim/learning_rate" in log.names

    # Each layer of a stacked weight has a threshold of its own, and named arrays stay.
    gate = state.model.transformer.layers.stacked.mlp.gate_proj.weight
    masks = gp.get_masks(state.opt_state)
    mask = masks.transformer.layers.stacked.mlp.gate_proj.weight
    assert mask.axes == gate.axes
    assert (mask.array.sum(axis=(1, 2)) == 819).all()
    assert not gate.array.sharding.is_fully_replicated
    assert mask.array.sharding.is_equivalent_to(gate.array.sharding, 3)

    # The trainer has saved its last state, and the next run finds it.
    assert latest_checkpoint_path(str(tmp_path / "run")).endswith("step-11")
    restored, resumed, _, _ = train(tmp_path, 14)
    assert int(restored.step) == 12
    assert harness.same(restored.model, state.model)
    assert harness.same(restored.opt_state, state.opt_state)
    assert int(resumed.step) == 14
    assert not harness.same(resumed.model, state.model)
    harness.check_exact(resumed.model, resumed.opt_state, planned)

    harness.record(
        "marin-levanter", "Llama (2 layers) on a mesh, Trainer", LINK, planned,
        without=without, with_link=with_link,
    )  # fmt: skip


def test_averages_of_weights(tmp_path):
    """They are dense until the masks are applied."""
    average = EmaModelAveragingConfig(beta=0.9)
    _, state, _, _ = train(tmp_path, 12, model_averaging=average)
    averaged = trainables_only(state.eval_model, True)
    with pytest.raises(ValueError, match="not zero"):
        gp.check_pruned(averaged, state.opt_state)
    masks = gp.get_masks(state.opt_state)
    gp.check_pruned(gp.apply_masks(averaged, masks), state.opt_state)


def test_a_watched_state(tmp_path):
    """Levanter watches no state with optax.MaskedNode; every leaf has a mask here."""
    watch = WatchConfig(watch_targets=["opt_state"], interval=5)
    every = gp.Rule(gp.one_shot_schedule(0.0, step=2), where=".*norm/weight/.*")
    pruned = PrunedAdamConfig(learning_rate=1e-3, warmup=0.0, rules=(*RULES, every))
    _, state, log, _ = train(tmp_path, 12, pruned, watch=watch)
    assert any("masks" in name for name in log.names)
    gp.check_pruned(state.model, state.opt_state)


def test_the_link_around_an_optimizer(tmp_path):
    """The link works, but the learning rate is no longer found by the trainer."""
    planned = gp.plan(RULES, MODEL.build(VOCAB, key=KEY), total_steps=12)
    wrapped = WrappedAdamConfig(learning_rate=1e-3, warmup=0.0)
    _, state, log, _ = train(tmp_path, 12, wrapped)
    harness.check_exact(state.model, state.opt_state, planned)
    assert "optim/learning_rate" not in log.names
