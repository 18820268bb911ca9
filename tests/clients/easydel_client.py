# /// script
# requires-python = ">=3.12"
# dependencies = ["easydel>=0.3.0", "pillow", "torch"]
# ///
"""EasyDeL: a small Llama in its Trainer, by the pruning module of its arguments.

Its models import classes of transformers that need Pillow and PyTorch.
"""

import easydel as ed
import jax
import jax.numpy as jnp
import numpy as np
import optax
from datasets import Dataset
from flax import nnx

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=1, end_step=7, every=3)
RULES = [gp.Rule(None, where="model/embed_tokens/.*|lm_head/.*"), gp.Rule(SCHEDULE)]
LINK = "TrainingArguments(pruning_module=PruningModule(gp.gradual_prune(rules)))"


class PruningModule:
    """A link at the end of the optimizer that the trainer makes of its arguments.

    The trainer calls all three methods. With the link the parameters are sparse after
    every update, so that the other two return them as they are.
    """

    def __init__(self, link):
        self.link = link

    def wrap_optax(self, tx):
        return optax.chain(tx, self.link)

    def pre_forward_update(self, params, opt_state):
        return params

    def post_gradient_update(self, params, opt_state):
        return params


def small_llama(seed):
    config = ed.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_mechanism="vanilla",
    )
    model = ed.LlamaForCausalLM(
        config=config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(seed)
    )
    return model.shard_model()


def trainer(folder, steps, pruning_module=None, seed=0, **settings):
    """Trains for so many steps, and saves the state after the last one."""
    tokens = np.random.default_rng(0).integers(0, 256, (128, 16)).tolist()
    attended = np.ones((128, 16), int).tolist()
    data = {"input_ids": tokens, "attention_mask": attended, "labels": tokens}
    arguments = ed.TrainingArguments(
        save_directory=str(folder),
        model_name="small",
        num_train_epochs=1,
        total_batch_size=8,
        max_training_steps=steps,
        max_length=16,
        learning_rate=1e-3,
        clip_grad=1.0,
        do_last_save=True,
        save_optimizer_state=True,
        shuffle_train_dataset=False,
        use_wandb=False,
        track_memory=False,
        progress_bar_type="json",
        pruning_module=pruning_module,
        **settings,
    )
    model = small_llama(seed)
    return ed.Trainer(arguments, model=model, dataset_train=Dataset.from_dict(data))


def first_step(folder, pruning_module=None):
    """The seconds in which a training of one step is compiled and run."""
    made = trainer(folder, 1, pruning_module)
    jax.clear_caches()
    # EasyDeL keeps compiled functions in a folder of its own, for the next process too.
    jax.config.update("jax_enable_compilation_cache", False)
    return harness.seconds(lambda: made.train().state.graphstate)


def test_a_llama(tmp_path):
    pruning = PruningModule(gp.gradual_prune(RULES))
    begun = trainer(tmp_path / "run", 9, pruning)
    params = begun.model_state.graphstate
    planned = gp.plan(RULES, params, total_steps=9)
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    assert {"lm_head/kernel", "model/embed_tokens/embedding"} <= dense
    assert not [leaf.path for leaf in planned.leaves if leaf.is_missed]
    kernel = params["model"]["layers"][0]["mlp"]["up_proj"]["kernel"]
    assert "fsdp" in kernel[...].sharding.spec[0]

    output = begun.train()
    state = output.state
    assert int(state.step) == 9
    harness.check_exact(state.graphstate, state.opt_state, planned)

    # The checkpoint of the last step, read with the optimizer of the arguments.
    restored = ed.EasyDeLState.load_state(
        output.checkpoint_path,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        tx_template=begun.arguments.get_tx_template(),
    )
    assert harness.same(restored.graphstate, state.graphstate)
    assert harness.same(restored.opt_state, state.opt_state)
    harness.check_exact(restored.graphstate, restored.opt_state, planned)

    # Other parameters at first, so that a training that began anew would be seen.
    again = trainer(tmp_path / "run", 13, pruning, seed=1, resume_if_possible=True)
    assert harness.same(again.model_state.graphstate, state.graphstate)
    resumed = again.train().state
    assert int(resumed.step) == 13
    assert int(gp.metrics(resumed.opt_state)["count"]) == 13
    harness.check_exact(resumed.graphstate, resumed.opt_state, planned)
    masks = gp.get_masks(resumed.opt_state)
    assert harness.same(masks, gp.get_masks(state.opt_state))
    assert not harness.same(resumed.graphstate, state.graphstate)

    # The model alone is sparse.
    resumed.model.save_pretrained(str(tmp_path / "model"))
    model = ed.AutoEasyDeLModelForCausalLM.from_pretrained(
        str(tmp_path / "model"), dtype=jnp.float32, param_dtype=jnp.float32
    )
    assert harness.same(nnx.state(model, nnx.Param), resumed.graphstate)
    gp.check_pruned(nnx.state(model, nnx.Param), resumed.opt_state)

    harness.record(
        "easydel", "Llama, Trainer on 8 devices", LINK, planned,
        without=first_step(tmp_path / "without"),
        with_link=first_step(tmp_path / "with", pruning),
    )  # fmt: skip
