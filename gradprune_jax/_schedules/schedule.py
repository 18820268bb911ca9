"""The schedule itself: at which steps masks change, and how sparse they are then."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradprune_jax._checks import (
    LAST_STEP,
    check_power,
    check_sparsity,
    check_window,
    is_traced,
)


@dataclasses.dataclass(frozen=True)
class SparsitySchedule:
    r"""When masks are recomputed, and how sparse they are from then on.

    Mask updates happen at $t_0, t_0 + \Delta t, t_0 + 2 \Delta t, \dots$ up to the
    end of the window, and always at the end itself. So the final sparsity is reached
    whether or not the window is a multiple of $\Delta t$.

    Made by `polynomial_schedule`, `one_shot_schedule` and `custom_schedule`. It has no
    `__call__`, because `optax.inject_hyperparams` would take it for a hyperparameter
    schedule and evaluate it.

    Attributes:
      begin_step: $t_0$, the step of the first mask update, in optimizer updates.
      end_step: the step of the last mask update.
      every: $\Delta t$, the steps from one mask update to the next.
      initial_sparsity: the sparsity at and before `begin_step`.
      final_sparsity: the sparsity from `end_step` on.
      power: the exponent of the polynomial between them.
      fn: sparsity as a function of the step, in place of the polynomial.

    Raises:
      ValueError: if a concrete field is outside its range.
    """

    begin_step: int
    end_step: int
    every: int
    initial_sparsity: Any
    final_sparsity: Any
    power: Any = 3
    fn: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        names = ("begin_step", "end_step", "every")
        window = check_window(*(getattr(self, name) for name in names))
        checked: dict[str, Any] = dict(zip(names, window, strict=True))
        for name in ("initial_sparsity", "final_sparsity"):
            checked[name] = check_sparsity(name, getattr(self, name))
        checked["power"] = check_power(self.power)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.fn is not None and not _is_hashable(self.fn):
            # A partial is hashed by its identity, whatever it calls.
            object.__setattr__(self, "fn", functools.partial(self.fn))

    def is_update_step(self, step: ArrayLike) -> jax.Array:
        """Whether the masks are recomputed at `step`.

        Args:
          step: integer scalar or array, traced or not; the first update is step 0.

        Returns:
          bool of the shape of `step`.

        Examples:
          >>> import gradprune_jax as gp
          >>> schedule = gp.polynomial_schedule(0.9, 10, end_step=25, every=10)
          >>> [step for step in range(100) if schedule.is_update_step(step)]
          [10, 20, 25]
        """
        step = _as_step(step)
        in_window = (step >= self.begin_step) & (step <= self.end_step)
        on_grid = (step - self.begin_step) % self.every == 0
        return in_window & (on_grid | (step == self.end_step))

    def sparsity(self, step: ArrayLike) -> jax.Array:
        """Returns the sparsity at `step`, which changes at mask updates only.

        With concrete fields it is read from a table of one value for each mask update,
        computed in float64 and rounded once to float32. On the device the polynomial
        would depend on how XLA fuses it. One ulp moves a kept count by one, and two
        layouts of the same parameters would get different masks.

        Args:
          step: integer scalar or array, traced or not.

        Returns:
          float32 of the shape of `step`, exactly `initial_sparsity` at and before
          `begin_step` and exactly `final_sparsity` from `end_step` on.

        Examples:
          >>> import gradprune_jax as gp
          >>> schedule = gp.polynomial_schedule(0.8, 0, end_step=100, every=50)
          >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 49, 50, 100)]
          [0.0, 0.0, 0.7, 0.8]
        """
        ends = (self.initial_sparsity, self.final_sparsity)
        return _in_force(self, step, self._curve, self._sparsities, ends)

    @property
    def update_steps(self) -> tuple[int, ...]:
        """The steps of all mask updates, in order (concrete schedules only)."""
        grid = range(self.begin_step, self.end_step, self.every)
        return (*grid, self.end_step)

    @functools.cached_property
    def _values(self) -> list[Any] | None:
        """The sparsity of every mask update, unrounded; None if a field is traced."""
        if not is_concrete(self):
            return None
        return evaluate(self._curve, self.update_steps)

    @functools.cached_property
    def _sparsities(self) -> np.ndarray | None:
        """The sparsity of every mask update, float32; None if a field is traced."""
        ends = (self.initial_sparsity, self.final_sparsity)
        return _table_of(self._values, ends)

    @functools.cached_property
    def _progresses(self) -> np.ndarray | None:
        """The progress at every mask update, float32; None if a field is traced."""
        if self._values is None:
            return None
        return _table_of([self._done(value) for value in self._values], (0, 1))

    @property
    def _ends(self) -> tuple[Any, Any]:
        """The initial and the final sparsity, float32 where a field is traced."""
        ends = (self.initial_sparsity, self.final_sparsity)
        return ends if is_concrete(self) else (_float32(ends[0]), _float32(ends[1]))

    def _curve(self, step: Any) -> Any:
        """The sparsity at a mask update: float64 for numbers, float32 for tracers."""
        if self.fn is not None:
            return self.fn(step)
        initial, final = self._ends
        window = self.end_step - self.begin_step
        if not is_traced(window) and window == 0:
            return final
        number: Any = float if is_concrete(self) else _float32
        power = _float32(self.power) if is_traced(self.power) else self.power
        remaining = 1 - number(step - self.begin_step) / number(window)
        return final + (initial - final) * remaining**power

    def _done(self, sparsity: Any) -> Any:
        """How much of the way from the initial to the final sparsity is done."""
        initial, final = self._ends
        difference = final - initial
        if not is_traced(difference) and difference == 0:
            return 0.0 * sparsity  # both ends are equal: 0 until `end_step` sets 1
        share = (sparsity - initial) / difference
        return jnp.clip(share, 0, 1) if is_traced(share) else min(max(share, 0.0), 1.0)


def progress(schedule: SparsitySchedule, step: ArrayLike) -> jax.Array:
    r"""How much of the way from the initial to the final sparsity is done.

    $$
    (s_t - s_i) / (s_f - s_i)
    $$

    with the sparsity in force at `step`, and never outside [0, 1]. Leaves with
    final sparsities of their own go along this curve.

    Args:
      schedule: the schedule.
      step: integer scalar or array, traced or not.

    Returns:
      float32 of the shape of `step`, exactly 0 at and before `begin_step` and exactly 1
      from `end_step` on.

    Examples:
      >>> import gradprune_jax as gp
      >>> schedule = gp.polynomial_schedule(0.8, begin_step=0, end_step=100, every=50)
      >>> [float(progress(schedule, step)) for step in (0, 49, 50, 100)]
      [0.0, 0.0, 0.875, 1.0]
    """

    def curve(step: Any) -> Any:
        return schedule._done(schedule._curve(step))

    return _in_force(schedule, step, curve, schedule._progresses, (0, 1))


def is_concrete(schedule: SparsitySchedule) -> bool:
    """Whether every field is a number, not a tracer of an outer transformation."""
    fields = dataclasses.fields(schedule)
    return not any(is_traced(getattr(schedule, field.name)) for field in fields)


def extremes(schedule: SparsitySchedule) -> list[tuple[np.float32, np.float32]]:
    """The sparsity and the progress at the sparsest mask update, and at the last.

    NumPy's numbers: no device is needed, and nothing is compiled. The schedule must be
    concrete.

    Examples:
      >>> import gradprune_jax as gp
      >>> [(float(s), float(p)) for s, p in extremes(gp.one_shot_schedule(0.5, 0))]
      [(0.5, 1.0), (0.5, 1.0)]
    """
    sparsities: Any = schedule._sparsities
    progresses: Any = schedule._progresses
    return [(sparsities[at], progresses[at]) for at in (sparsities.argmax(), -1)]


def evaluate(curve: Callable[[Any], Any], steps: Sequence[int]) -> list[Any]:
    """The curve at concrete steps, now, even while an outer function is traced."""
    with jax.ensure_compile_time_eval():
        # A NumPy scalar has the dtype that optax schedules expect, and computes in
        # float64 where the function is plain Python.
        return [curve(np.int32(step)) for step in steps]


def _table_of(values: Sequence[Any] | None, ends: tuple[Any, Any]) -> Any:
    """The values of all mask updates as float32, with exact values at both ends."""
    if values is None:
        return None
    table = np.asarray(values, np.float32)
    table[0] = ends[0]
    table[-1] = ends[1]  # which holds where both are the same update
    return table


def _in_force(
    schedule: SparsitySchedule,
    step: ArrayLike,
    curve: Callable[[Any], Any],
    table: np.ndarray | None,
    ends: tuple[Any, Any],
) -> jax.Array:
    """A curve at the last mask update up to a step, with exact values at both ends.

    Args:
      schedule: the schedule.
      step: integer scalar or array, traced or not.
      curve: a function of the step of a mask update.
      table: its values at all mask updates; None if the schedule is traced.
      ends: the values at and before `begin_step`, and from `end_step` on.
    """
    step = _as_step(step)
    begin, end = schedule.begin_step, schedule.end_step
    update = (jnp.clip(step, begin, end) - begin) // schedule.every
    if table is None:
        value = _float32(curve(begin + update * schedule.every))
    else:
        value = jnp.asarray(table)[update]
    value = jnp.where(step <= begin, _float32(ends[0]), value)
    return jnp.where(step >= end, _float32(ends[1]), value)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _float32(value: Any) -> jax.Array:
    return jnp.asarray(value).astype(jnp.float32)


def _as_step(step: ArrayLike) -> jax.Array:
    """The step as an integer array that can hold every step."""
    if isinstance(step, int):
        step = min(step, LAST_STEP)
    step = jnp.asarray(step)
    if not jnp.issubdtype(step.dtype, jnp.integer):
        raise ValueError(f"the step has dtype {step.dtype}; it must be an integer.")
    return step if step.dtype.itemsize >= 4 else step.astype(jnp.int32)
