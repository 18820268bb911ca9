# /// script
# requires-python = ">=3.12"
# dependencies = ["gemma>=4.0.1", "kauldron>=1.4.4", "tensorflow-cpu>=2.21"]
# ///
"""Gemma 3, cut down, in Kauldron's Trainer with Adafactor, as its examples train it."""

import jax.numpy as jnp
import numpy as np
import optax
from gemma import gm
from kauldron import kd

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=1, end_step=7, every=3)
RULES = [
    gp.Rule(None, where="embedder/.*"),  # also the last layer: Gemma ties the two
    # Keys with values, and gates with inputs: two matrices in one array.
    gp.Rule(SCHEDULE, where=".*/(kv_einsum/w|gating_einsum)", stack_axis=0),
    gp.Rule(SCHEDULE),
]
LINK = (
    "kd.optim.named_chain(adafactor=optax.adafactor(1e-3), "
    "prune=gp.gradual_prune(rules))"
)


class Tokens:
    """Sixteen random texts, held in memory."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        text = np.random.default_rng(int(index)).integers(0, 256, 17).astype(np.int32)
        return {"input": text[:-1], "target": text[1:, None]}


def small_gemma():
    """The configuration of Gemma 3 with 270 million parameters, cut down."""
    config = gm.nn.config.TransformerConfig(
        num_embed=256,
        embed_dim=64,
        hidden_dim=128,
        num_heads=4,
        head_dim=16,
        num_kv_heads=1,
        final_logit_softcap=None,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        attention_types=(gm.nn.AttentionType.LOCAL_SLIDING, gm.nn.AttentionType.GLOBAL),
        sliding_window_size=8,
        transpose_gating_einsum=True,
    )
    return gm.nn.Transformer(config=config, tokens="batch.input")


def trainer(optimizer, folder, last_step, seed=0):
    """Trains for last_step + 1 updates, and saves the state before every second one."""
    data = kd.data.py.DataSource(
        data_source=Tokens(), batch_size=8, shuffle=False, num_workers=0
    )
    losses = {
        "xentropy": kd.losses.SoftmaxCrossEntropyWithIntLabels(
            logits="preds.logits", labels="batch.target"
        )
    }
    return kd.train.Trainer(
        seed=seed,
        workdir=folder,
        train_ds=data,
        model=small_gemma(),
        sharding=kd.sharding.ShardingStrategy(params=kd.sharding.FSDPSharding()),
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


def test_gemma_3(tmp_path):
    adafactor = optax.adafactor(1e-3)
    tx = kd.optim.named_chain(adafactor=adafactor, prune=gp.gradual_prune(RULES))
    begun = trainer(tx, tmp_path / "run", 8)
    params = begun.init_state().params
    planned = gp.plan(RULES, params, total_steps=9)
    assert {leaf.dtype for leaf in planned.leaves} == {jnp.dtype(jnp.bfloat16)}
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    assert "embedder/input_embedding" in dense
    assert all(path.endswith(("embedding", "scale")) for path in dense)

    state, _ = begun.train()
    assert int(state.step) == 9
    harness.check_exact(state.params, state.opt_state, planned)

    # A second trainer finds the checkpoint of step 8 in the folder, and does the last.
    # Its seed is another one, so that a training that began anew would be seen.
    stepped, _ = trainer(tx, tmp_path / "run", 8, seed=1).train()
    assert harness.same(stepped.params, state.params)
    assert harness.same(stepped.opt_state, state.opt_state)
    resumed, _ = trainer(tx, tmp_path / "run", 12, seed=1).train()
    assert int(resumed.step) == 13
    harness.check_exact(resumed.params, resumed.opt_state, planned)
    assert not harness.same(resumed.params, state.params)

    # Gemma's own files of parameters hold the sparse model.
    gm.ckpts.save_params(resumed.params, tmp_path / "params", wait_until_finished=True)
    loaded = gm.ckpts.load_params(tmp_path / "params")
    assert harness.same(loaded, resumed.params)
    gp.check_pruned(loaded, resumed.opt_state)

    harness.record(
        "gemma", "Gemma 3, Kauldron's Trainer", LINK, planned,
        without=first_step(adafactor, tmp_path / "without"),
        with_link=first_step(tx, tmp_path / "with"),
    )  # fmt: skip
