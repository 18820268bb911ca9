"""What is pruned in a Keras model: the plan, the masks, checks, and a progress line."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import keras

import gradprune_jax as gp
from gradprune_jax._rules import as_rules
from gradprune_jax.keras.optimizer import GradualPrune
from gradprune_jax.keras.variables import values_of, with_default


def plan(
    model: keras.Model,
    schedule_or_rules: Any,
    *,
    total_steps: int | None = None,
    budget: int | gp.Budget | None = None,
    **fields: Any,
) -> gp.Plan:
    """A dry run: which variables of a model `GradualPrune` would prune, and how far.

    Args:
      model: a model that is built.
      schedule_or_rules: as for `GradualPrune`.
      total_steps: the number of updates of the training.
      budget: what the model may have, see `gradprune_jax.plan`.
      **fields: `where`, `structure` and so on, as for `GradualPrune`.

    Returns:
      The plan; `print` shows it as a table.

    Raises:
      ValueError: if the model is not built, or a rule matches nothing.

    Examples:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
      >>> planned = plan(model, gp.polynomial_schedule(0.75, 0, end_step=100))
      >>> [(leaf.path.split("/")[-1], leaf.kept) for leaf in planned.leaves]
      [('kernel', 8), ('bias', 4)]
    """
    _check_built(model)
    rules = as_rules(schedule_or_rules, **fields)
    planned = gp.plan(
        with_default(rules), _params(model), total_steps=total_steps, budget=budget
    )
    # With the `where` that was given: what is its own default, no file holds.
    given = (
        dataclasses.replace(fitted, where=rule.where)
        for fitted, rule in zip(planned.rules, rules, strict=True)
    )
    return dataclasses.replace(planned, rules=tuple(given))


def get_masks(model: keras.Model) -> dict[str, Any]:
    """The masks of a model, by the paths of its variables.

    Args:
      model: a model that was compiled with `GradualPrune`.

    Returns:
      bool arrays, True where a weight is kept; `optax.MaskedNode()` where a variable is
      dense.

    Raises:
      ValueError: if the model has no such optimizer, or is not built.
    """
    return _copied(gp.get_masks(_pruner(model).prune_state))


def set_masks(model: keras.Model, masks: dict[str, Any]) -> None:
    """Give a model the masks to go on from: weights pruned in them stay pruned.

    For weights that were pruned before: `model.load_weights` brings no masks back where
    the optimizer is new, and neither does compiling a model again.

    Args:
      model: a model that is built, and compiled with `GradualPrune`.
      masks: bool arrays by the paths of the variables, as `get_masks` and
        `gradprune_jax.masks_from_params` return them.

    Raises:
      ValueError: if the model has no such optimizer or is not built, or the masks do
        not fit.

    Examples:
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
      >>> model.layers[0].kernel.assign([[1.0, 0.0, 0.0, 0.0]] * 8) is not None
      True
      >>> schedule = gp.polynomial_schedule(0.9, begin_step=0, end_step=100)
      >>> model.compile(optimizer=GradualPrune("sgd", schedule), loss="mse")
      >>> kernel = model.trainable_variables[0]
      >>> set_masks(model, gp.masks_from_params({kernel.path: kernel.value}))
      >>> int(get_masks(model)[kernel.path].sum())
      8
    """
    optimizer = _pruner(model)
    _check_built(model)
    model.optimizer.build(model.trainable_variables)
    state = optimizer.prune_state
    wanted = gp.get_masks(state)
    wanted.update(_copied(masks))
    optimizer.set_prune_state(gp.set_masks(state, wanted))


def _check_built(model: keras.Model) -> None:
    """Refuses a model that has no variables yet."""
    if not model.built:
        raise ValueError(
            "the model is not built; give it an Input, or call model.build(shape)."
        )


def check_pruned(model: keras.Model) -> None:
    """Raise an error if a pruned weight is not zero, or a weight is not finite.

    Something that writes into a model after its last update may have done it:
    `EarlyStopping(restore_best_weights=True)` brings back weights of another step.

    Args:
      model: a model that was compiled with `GradualPrune`.

    Raises:
      ValueError: naming the variable and how many of its weights.
    """
    gp.check_pruned(_params(model), _pruner(model).prune_state)


class LogSparsity(keras.callbacks.Callback):
    """Adds `sparsity` to the logs of every epoch.

    The progress line shows it, the history keeps it, and callbacks that come after this
    one (`TensorBoard`, `CSVLogger`) log it. It is the fraction of zeros in what is
    pruned, all variables together.

    Examples:
      >>> import numpy as np
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
      >>> schedule = gp.one_shot_schedule(0.5, step=0)
      >>> model.compile(optimizer=GradualPrune("sgd", schedule), loss="mse")
      >>> batch = np.ones((8, 8)), np.ones((8, 4))
      >>> model.fit(*batch, verbose=0, callbacks=[LogSparsity()]).history["sparsity"]
      [0.5]
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the sparsity into the logs that all callbacks share."""
        del epoch
        if logs is not None:
            state = _pruner(self.model).prune_state
            logs["sparsity"] = float(gp.sparsity(gp.get_masks(state))["total"])


def _copied(masks: Any) -> Any:
    """The masks as arrays of their own: `fit` gives away those of the variables."""
    return jax.tree.map(jnp.copy, masks)


def _params(model: keras.Model) -> dict[str, Any]:
    """The values of the trainable variables by their paths."""
    return values_of(model.trainable_variables)


def _pruner(model: keras.Model) -> GradualPrune:
    """The optimizer that prunes, also inside of Keras' `LossScaleOptimizer`."""
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not isinstance(optimizer, GradualPrune):
        raise ValueError(
            f"the optimizer of the model is {optimizer!r}; compile it with "
            "GradualPrune(optimizer, schedule)."
        )
    return optimizer
