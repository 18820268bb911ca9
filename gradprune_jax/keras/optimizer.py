"""GradualPrune: a Keras optimizer that prunes what another one trains."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import optax

import gradprune_jax as gp
from gradprune_jax._checks import is_traced
from gradprune_jax._in_place import update_if
from gradprune_jax._rules import as_rules
from gradprune_jax.keras.variables import named, values_of, with_default


@keras.saving.register_keras_serializable(package="gradprune_jax")
class GradualPrune(keras.optimizers.Optimizer):
    r"""Prunes gradually while another optimizer trains.

    As `gradprune_jax.with_gradual_prune` does: with the masks $m$ as they stood before
    the step, the optimizer sees the gradients $m \odot g$; then, on the steps of the
    schedule, the masks become the exact top k of the weights before the step; and after
    every step pruned weights are exactly +0.0, whatever the optimizer, its weight
    decay, its average of the weights or a constraint has made of them.

    It counts the optimizer's updates: with `gradient_accumulation_steps` these are
    fewer than batches. Learning rate, its schedules and callbacks are those of the
    optimizer inside. With `mixed_float16` Keras puts its `LossScaleOptimizer` around
    this one, and skipped steps do not count.

    Args:
      optimizer: any optimizer of Keras, or its name.
      schedule_or_rules: a schedule or rules, as for `gradprune_jax.gradual_prune`.
        Paths are Keras' own, such as `sequential/dense/kernel`.
      where: which parameters to prune: a regular expression or a callable, see `Rule`.
        None takes `is_weight`, but no kernels of layers that are called depthwise
        (`depthwise_conv2d`, `block_1_depthwise`, `conv_dw_1`, `dwconv2`).
      structure: which weights are kept together.
      allocation: how the sparsity is shared out.
      min_density: the fraction that each parameter keeps at least.
      min_per_channel: the weights that stay at least in every output channel.
      score: by what weights are ranked; gradients are there for those that read them.
      name: of this optimizer.

    Raises:
      ValueError: if an argument is not valid; when the model is built, if a rule
        matches nothing.

    Examples:
      >>> import keras, numpy as np
      >>> import gradprune_jax as gp
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
      >>> schedule = gp.polynomial_schedule(0.75, begin_step=0, end_step=4, every=2)
      >>> model.compile(optimizer=GradualPrune("adam", schedule), loss="mse")
      >>> history = model.fit(np.ones((40, 8)), np.ones((40, 4)), 8, verbose=0)
      >>> int((model.layers[0].kernel.value != 0).sum())
      8
    """

    def __init__(
        self,
        optimizer: Any,
        schedule_or_rules: gp.SparsitySchedule | gp.Rule | Sequence[gp.Rule],
        *,
        where: Any = None,
        structure: gp.Structure | None = None,
        allocation: Any = "uniform",
        min_density: float = 0.0,
        min_per_channel: int = 0,
        score: Any = None,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = keras.optimizers.get(optimizer)
        self.rules = as_rules(
            schedule_or_rules,
            where=where,
            structure=structure,
            allocation=allocation,
            min_density=min_density,
            min_per_channel=min_per_channel,
            score=score,
        )
        self._check()
        self._transform = gp.with_gradual_prune(
            optax.identity(), with_default(self.rules)
        )
        self._state_variables: list[Any] = []
        self._state_tree: Any = None

    def build(self, variables: Sequence[Any]) -> None:
        """Make the masks, and the variables of the optimizer inside."""
        if self.built:
            return
        params = named(variables)
        state = self._transform.init(values_of(variables))
        leaves, self._state_tree = jax.tree_util.tree_flatten_with_path(state)
        self._state_variables = [
            self._add_state(keys, leaf, params) for keys, leaf in leaves
        ]
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def prune_state(self) -> Any:
        """The state of the transformation: its count and its masks, by path.

        `gradprune_jax.get_masks` and `gradprune_jax.metrics` read it.
        """
        if not self.built:
            raise ValueError("the model is not built yet; there are no masks.")
        values = [variable.value for variable in self._state_variables]
        return self._state_tree.unflatten(values)

    def set_prune_state(self, state: Any) -> None:
        """Give the variables the values of a state like `prune_state`."""
        values = jax.tree.leaves(state)
        for variable, value in zip(self._state_variables, values, strict=True):
            variable.assign(value)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Mask the gradients, let the optimizer update, and prune.

        Args:
          grads: the gradients, one for each variable; None where there is none.
          trainable_variables: the variables; by default those of `build`.
        """
        if not self.built:
            self.build(list(trainable_variables))
        variables = list(trainable_variables or self._trainable_variables)
        params = values_of(variables)
        gradients = collections.OrderedDict(
            (path, jnp.zeros_like(params[path]) if gradient is None else gradient)
            for path, gradient in zip(params, grads, strict=True)
        )
        state = self.prune_state
        masked = _kept(gp.get_masks(state), gradients)
        given = [
            None if gradient is None else masked[path]
            for path, gradient in zip(params, grads, strict=True)
        ]
        is_update = self._is_update()
        self.inner_optimizer.apply(given, variables)
        if is_traced(is_update):
            state = update_if(is_update, self._next_state, state, (gradients, params))
        elif is_update:
            state = self._next_state(state, (gradients, params))
        self.set_prune_state(state)
        self._prune(variables)
        self._iterations.assign_add(1)

    def _next_state(self, state: Any, inputs: tuple[Any, Any]) -> Any:
        """The state of pruning after a step, from gradients and parameters."""
        gradients, params = inputs
        return self._transform.update(gradients, state, params)[1]

    def finalize_variable_values(self, var_list: Any) -> None:
        """Let the optimizer put its average into the model, and prune that too."""
        self.inner_optimizer.finalize_variable_values(var_list)
        # After an error in a step Keras has taken the values away, and calls this too.
        if all(variable._value is not None for variable in var_list):
            self._prune(var_list)

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Any = None
    ) -> None:
        """Tell the optimizer inside which variables do not decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def variables(self) -> list[Any]:
        """All variables: the count, the masks, and those of the optimizer inside."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        """That of the optimizer inside."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The updates of the optimizer inside."""
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Any) -> Any:
        """As the optimizer inside does, which divides the gradients again."""
        return self.inner_optimizer.scale_loss(loss)

    def get_config(self) -> dict[str, Any]:
        """The optimizer inside and the rules, as `model.save` writes them.

        Raises:
          ValueError: if a rule holds a function, which no file holds.
        """
        return {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "rules": json.loads(gp.rules_to_json(list(self.rules))),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> GradualPrune:
        """Make the optimizer of what `get_config` returned."""
        inner = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        rules = gp.rules_from_json(json.dumps(config["rules"]))
        return cls(inner, rules, name=config["name"])

    def _check(self) -> None:
        """Refuse an optimizer with which steps or gradients would be miscounted."""
        if isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "optimizer is a LossScaleOptimizer, whose skipped steps must not "
                "count; put it outside: LossScaleOptimizer(GradualPrune(optimizer, "
                "schedule))."
            )
        reads_gradients = any(
            rule.score is not None and rule.score.needs_gradients for rule in self.rules
        )
        if reads_gradients and self.inner_optimizer.gradient_accumulation_steps:
            raise ValueError(
                "gradient_accumulation_steps is set, and a score reads gradients, of "
                "which it would see those of one batch alone; leave one of them out."
            )

    def _add_state(self, keys: Any, leaf: jax.Array, params: dict[str, Any]) -> Any:
        """Make a variable for a leaf of the state; masks lie as their parameters do."""
        path = [getattr(key, "key", None) for key in keys]
        parameter = next((params[key] for key in path if key in params), None)
        place = jax.tree_util.keystr(keys, simple=True, separator="_")
        return self.add_variable(
            shape=leaf.shape,
            initializer=_Value(leaf),
            dtype=str(leaf.dtype),
            layout=getattr(parameter, "_layout", None),
            name=re.sub(r"\W+", "_", place),
        )

    def _is_update(self) -> Any:
        """Whether the optimizer inside updates in this call, or gathers gradients."""
        steps = self.inner_optimizer.gradient_accumulation_steps
        if not steps:
            return True
        return (jnp.asarray(self.inner_optimizer._iterations.value) + 1) % steps == 0

    def _prune(self, variables: Sequence[Any]) -> None:
        """Make pruned weights zero."""
        values = values_of(variables)
        kept = _kept(gp.get_masks(self.prune_state), values)
        for variable, path in zip(variables, values, strict=True):
            if kept[path] is not values[path]:
                variable.assign(kept[path])


class _Value(keras.initializers.Initializer):
    """Initializes a variable with a value that is there already."""

    def __init__(self, value: jax.Array) -> None:
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> jax.Array:
        """Return the value, which has the shape and dtype."""
        del shape, dtype
        return self.value


def _kept(masks: Any, values: Any) -> dict[str, Any]:
    """The values where masks are True, else +0.0; what has no mask as it is."""
    return {
        path: jnp.where(masks[path], value, jnp.zeros_like(value))
        if isinstance(masks.get(path), jax.Array)
        else value
        for path, value in values.items()
    }
