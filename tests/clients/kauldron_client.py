# /// script
# requires-python = ">=3.12"
# dependencies = ["kauldron>=1.4.4", "tensorflow-cpu>=2.21"]
# ///
"""Kauldron: a vision transformer in its Trainer, with an average of the parameters."""

import re

import jax
import numpy as np
import optax
import pytest
from kauldron import kd

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=1, end_step=7, every=3)
# By default the learned positions would be pruned too, by their name.
RULES = [gp.Rule(None, where="encoder/pos_embedding/.*"), gp.Rule(SCHEDULE)]
LINK = "kd.optim.named_chain(adam=optax.adam(1e-3), prune=gp.gradual_prune(rules))"
# Attention has biases of two axes, heads and width.
ATTENTION_BIAS = "encoder/layers_./attention/(query|key|value)/bias"


class Pictures:
    """Sixteen random pictures with labels, held in memory."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        image = np.random.default_rng(int(index)).normal(size=(16, 16, 3))
        return {"image": image.astype(np.float32), "label": np.array([int(index) % 10])}


def trainer(optimizer, folder, last_step, seed=0):
    """Trains for last_step + 1 updates, and saves the state before every second one."""
    encoder = kd.nn.VitEncoder.from_spec(
        num_heads=2, hidden_size=32, num_layers=2, patch_size=4
    )
    data = kd.data.py.DataSource(
        data_source=Pictures(), batch_size=8, shuffle=False, num_workers=0
    )
    losses = {
        "cross_entropy": kd.losses.SoftmaxCrossEntropyWithIntLabels(
            logits="preds.logits", labels="batch.label"
        )
    }
    return kd.train.Trainer(
        seed=seed,
        workdir=folder,
        train_ds=data,
        model=kd.nn.Vit(encoder=encoder, num_classes=10, image="batch.image"),
        num_train_steps=last_step,
        train_losses=losses,
        optimizer=optimizer,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=2),
        writer=kd.train.metric_writer.NoopWriter(),
        profiler=None,
    )


def first_step(optimizer, folder):
    """The seconds of the first step."""
    made = trainer(optimizer, folder, 0)
    state = made.init_state()
    batch = kd.sharding.device_put(next(iter(made.train_ds)), made.sharding.batch)
    return harness.seconds(lambda: made.trainstep.step(state, batch)[0])


def test_a_vision_transformer(tmp_path):
    adam = optax.adam(1e-3)
    tx = kd.optim.named_chain(adam=adam, prune=gp.gradual_prune(RULES))
    begun = trainer(tx, tmp_path / "run", 8)
    planned = gp.plan(RULES, begun.init_state().params, total_steps=9)
    missed = [leaf.path for leaf in planned.leaves if leaf.is_missed]
    assert len(missed) == 6
    assert all(re.fullmatch(ATTENTION_BIAS, path) for path in missed)

    state, _ = begun.train()
    assert int(state.step) == 9
    harness.check_exact(state.params, state.opt_state, planned)
    assert int(state.opt_state["prune"].count) == 9

    # A second trainer finds the checkpoint of step 8 in the folder, and does the last.
    # Its seed is another one, so that a training that began anew would be seen.
    stepped, _ = trainer(tx, tmp_path / "run", 8, seed=1).train()
    assert int(stepped.step) == 9
    assert harness.same(stepped.params, state.params)
    assert harness.same(stepped.opt_state, state.opt_state)
    resumed, _ = trainer(tx, tmp_path / "run", 12, seed=1).train()
    assert int(resumed.step) == 13
    harness.check_exact(resumed.params, resumed.opt_state, planned)
    assert harness.same(gp.get_masks(resumed.opt_state), gp.get_masks(state.opt_state))
    assert not harness.same(resumed.params, state.params)

    harness.record(
        "kauldron", "ViT, Trainer", LINK, planned,
        without=first_step(adam, tmp_path / "without"),
        with_link=first_step(tx, tmp_path / "with"),
    )  # fmt: skip


def test_the_average_of_parameters_needs_the_masks(tmp_path):
    """`ema_params` goes after the link, and `apply_masks` makes its copy sparse."""
    tx = kd.optim.named_chain(
        adam=optax.adam(1e-3),
        prune=gp.gradual_prune(RULES),
        ema=kd.optim.ema_params(decay=0.9),
    )
    state, _ = trainer(tx, tmp_path, 8).train()
    planned = gp.plan(RULES, state.params, total_steps=9)
    harness.check_exact(state.params, state.opt_state, planned)
    average = kd.optim.UseEmaParams().transform(state).params
    with pytest.raises(ValueError, match="encoder"):
        gp.check_pruned(average, state.opt_state)
    masked = gp.apply_masks(average, gp.get_masks(state.opt_state))
    harness.check_exact(masked, state.opt_state, planned)


def test_a_part_of_the_parameters(tmp_path):
    """The link lies inside `partial_updates`, with what is trained."""
    tx = kd.optim.partial_updates(
        kd.optim.named_chain(adam=optax.adam(1e-3), prune=gp.gradual_prune(RULES)),
        mask=kd.optim.select("encoder"),
    )
    made = trainer(tx, tmp_path, 8)
    first = jax.device_get(made.init_state().params)
    state, _ = made.train()
    frozen = gp.Rule(None, where="(classifier_head|pre_logits)/.*")
    planned = gp.plan([frozen, *RULES], state.params, total_steps=9)
    harness.check_exact(state.params, state.opt_state, planned)
    assert harness.same(first["classifier_head"], state.params["classifier_head"])
