# /// script
# requires-python = ">=3.12"
# dependencies = ["equimo>=2.7.0"]
# ///
"""equimo: a vision transformer and a ConvNeXt, in the loop of Equinox's examples."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from equimo.serialization import load_weights, save_model
from equimo.vision.models.convnext import ConvNeXt
from equimo.vision.models.vit import VisionTransformer

import gradprune_jax as gp
from tests.clients import harness

SCHEDULE = gp.polynomial_schedule(0.9, begin_step=2, end_step=10, every=4)
LINK = "optax.chain(optax.adam(1e-3), gp.gradual_prune(rules))"
# A table of positions has the name of a weight; a depthwise kernel has few weights.
DENSE = gp.Rule(None, where="global_pos_embed/weight|.*/dwconv/weight")
RULES = [DENSE, gp.Rule(SCHEDULE)]

VISION_TRANSFORMER = {
    "img_size": 32, "in_channels": 3, "dim": 48, "patch_size": 8, "num_heads": [4],
    "depths": [2], "num_classes": 10,
}  # fmt: skip
CONVNEXT = {"in_channels": 3, "depths": [1, 1], "dims": [16, 32], "num_classes": 10}


def train(model, opt_state, tx, steps):
    """Returns what a training ends with, and the seconds of its first step."""

    @eqx.filter_value_and_grad
    def loss_fn(model, images, labels, key):
        keys = jax.random.split(key, len(images))
        logits = jax.vmap(model)(images, keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit
    def train_step(model, opt_state, images, labels, key):
        _, gradients = loss_fn(model, images, labels, key)
        updates, opt_state = tx.update(gradients, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state

    def step(number, model, opt_state):
        images = jax.random.normal(jax.random.key(number), (4, 3, 32, 32))
        labels = jnp.arange(4)
        return train_step(model, opt_state, images, labels, jax.random.key(number))

    def first_step():
        return eqx.filter(step(0, model, opt_state), eqx.is_array)

    took = harness.seconds(first_step)
    for number in range(steps):
        model, opt_state = step(number, model, opt_state)
    return model, opt_state, took


def check_dense(make, planned):
    """What stays dense: the rule's, norms, biases, scales and tokens."""
    dense = {leaf.path for leaf in planned.leaves if leaf.rule is None}
    ends = ("bias", "norm/weight", "gamma")
    others = {path for path in dense if not path.endswith(ends)}
    if make is VisionTransformer:
        assert others == {"global_pos_embed/weight", "cls_token", "reg_tokens"}
    else:
        assert others == {f"blocks/{stage}/blocks/0/dwconv/weight" for stage in (0, 1)}


@pytest.mark.parametrize(
    ("make", "settings"),
    [(VisionTransformer, VISION_TRANSFORMER), (ConvNeXt, CONVNEXT)],
)
def test_training(make, settings, tmp_path):
    first = make(**settings, key=jax.random.key(0))
    params = eqx.filter(first, eqx.is_inexact_array)
    planned = gp.plan(RULES, params, total_steps=12)
    check_dense(make, planned)

    adam = optax.adam(1e-3)
    _, _, without = train(first, adam.init(params), adam, 0)
    tx = optax.chain(adam, gp.gradual_prune(RULES))
    model, opt_state, with_link = train(first, tx.init(params), tx, 12)
    harness.check_exact(model, opt_state, planned)

    eqx.tree_serialise_leaves(tmp_path / "state.eqx", (model, opt_state))
    other = make(**settings, key=jax.random.key(1))
    like = (other, tx.init(eqx.filter(other, eqx.is_inexact_array)))
    assert not harness.same(like, (model, opt_state))
    restored = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", like)
    assert harness.same(restored, (model, opt_state))
    resumed, opt_state, _ = train(*restored, tx, 3)
    assert not harness.same(resumed, model)
    harness.check_exact(resumed, opt_state, planned)

    # The archive of a model alone: the masks are where its weights are not zero.
    path = save_model(tmp_path / "model", model, settings)
    loaded = load_weights(other, path=path, inference_mode=False)
    assert harness.same(loaded, model)
    masks = gp.masks_from_params(eqx.filter(loaded, eqx.is_inexact_array))
    assert harness.same(loaded, gp.apply_masks(loaded, masks))
    harness.record(
        "equimo", f"{make.__name__}, loop of Equinox", LINK, planned,
        without=without, with_link=with_link,
    )  # fmt: skip
