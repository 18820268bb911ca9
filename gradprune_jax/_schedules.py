"""Schedules: at which steps the masks change, and how sparse they are then."""

from __future__ import annotations

import bisect
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
    check_integer,
    check_power,
    check_sparsity,
    check_window,
    is_traced,
)


@dataclasses.dataclass(frozen=True)
class _Table:
    """A function of the step, by its values at all mask updates."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __call__(self, step: Any) -> float:
        return self.values[bisect.bisect_left(self.steps, step)]


@dataclasses.dataclass(frozen=True)
class SparsitySchedule:
    r"""When masks are recomputed, and how sparse they are from then on.

    Mask updates happen at $t_0, t_0 + \Delta t, t_0 + 2 \Delta t, \dots$ up to
    the end of the window, and always at the end itself, so the final sparsity is
    reached whether or not the window is a multiple of $\Delta t$.

    Made by `polynomial_schedule`, `one_shot_schedule` and
    `custom_schedule`. It is no callable, because
    `optax.inject_hyperparams` would take it for a hyperparameter schedule.

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
        begin_step, end_step, every = check_window(
            self.begin_step, self.end_step, self.every
        )
        checked = {
            "begin_step": begin_step,
            "end_step": end_step,
            "every": every,
            "initial_sparsity": check_sparsity(
                "initial_sparsity", self.initial_sparsity
            ),
            "final_sparsity": check_sparsity("final_sparsity", self.final_sparsity),
            "power": check_power(self.power),
        }
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
          >>> schedule = polynomial_schedule(0.9, begin_step=10, end_step=25, every=10)
          >>> [step for step in range(100) if schedule.is_update_step(step)]
          [10, 20, 25]
        """
        step = _as_step(step)
        in_window = (step >= self.begin_step) & (step <= self.end_step)
        on_grid = (step - self.begin_step) % self.every == 0
        return in_window & (on_grid | (step == self.end_step))

    def sparsity(self, step: ArrayLike) -> jax.Array:
        """The sparsity in force at `step`: that of the last mask update up to it.

        With concrete fields it is read from a table of one value for each mask update,
        computed in float64 and rounded once to float32. Evaluated on the device, it
        would depend on how XLA fuses the polynomial: one ulp moves a kept count by
        one, and two layouts of the same parameters would get different masks.

        Args:
          step: integer scalar or array, traced or not.

        Returns:
          float32 of the shape of `step`, exactly `initial_sparsity` at and before
          `begin_step` and exactly `final_sparsity` from `end_step` on.

        Examples:
          >>> schedule = polynomial_schedule(0.8, begin_step=0, end_step=100, every=50)
          >>> [round(float(schedule.sparsity(step)), 3) for step in (0, 49, 50, 100)]
          [0.0, 0.0, 0.7, 0.8]
        """
        return self._between(
            step,
            self.initial_sparsity,
            self.final_sparsity,
            self._value,
            self._sparsities,
        )

    def progress(self, step: ArrayLike) -> jax.Array:
        """How much of the way from the initial to the final sparsity is done.

        $$
        (s_t - s_i) / (s_f - s_i)
        $$

        with the sparsity in force at `step`, and never outside [0, 1]. Leaves with
        final sparsities of their own go along this curve.

        Args:
          step: integer scalar or array, traced or not.

        Returns:
          float32 of the shape of `step`, exactly 0 at and before `begin_step` and
          exactly 1 from `end_step` on.

        Examples:
          >>> schedule = polynomial_schedule(0.8, begin_step=0, end_step=100, every=50)
          >>> [float(schedule.progress(step)) for step in (0, 49, 50, 100)]
          [0.0, 0.0, 0.875, 1.0]
        """
        return self._between(
            step, 0, 1, lambda step: self._progress(self._value(step)), self._progresses
        )

    def _between(
        self,
        step: ArrayLike,
        first: Any,
        last: Any,
        curve: Callable[[Any], Any],
        table: np.ndarray | None,
    ) -> jax.Array:
        """A curve at the last mask update, with exact values at both ends."""
        step = _as_step(step)
        index = (jnp.clip(step, self.begin_step, self.end_step) - self.begin_step) // (
            self.every
        )
        if table is not None:
            inside = jnp.asarray(table)[index]
        else:
            inside = _float32(curve(self.begin_step + index * self.every))
        before_end = jnp.where(step <= self.begin_step, _float32(first), inside)
        return jnp.where(step >= self.end_step, _float32(last), before_end)

    def tabulated(self) -> SparsitySchedule:
        """An equal schedule, of which a function is known by its values alone.

        Two functions are never equal, so a program that is compiled for one would be
        compiled anew for the other.
        """
        if self.fn is None or self._values is None:
            return self
        values = tuple(float(value) for value in self._values)
        return dataclasses.replace(self, fn=_Table(self.update_steps, values))

    @property
    def is_concrete(self) -> bool:
        """Whether every field is a number, not a tracer of an outer transformation."""
        fields = dataclasses.fields(self)
        return not any(is_traced(getattr(self, field.name)) for field in fields)

    @property
    def highest_sparsity(self) -> Any:
        """That of the masks in the end, since masks never grow: the schedule's peak."""
        values = self._sparsities
        return self.final_sparsity if values is None else float(values.max())

    @property
    def update_steps(self) -> tuple[int, ...]:
        """The steps of all mask updates, in order (concrete schedules only)."""
        grid = range(self.begin_step, self.end_step, self.every)
        return (*grid, self.end_step)

    @functools.cached_property
    def _values(self) -> list[Any] | None:
        """The sparsity of every mask update, unrounded; None if a field is traced."""
        if not self.is_concrete:
            return None
        return _evaluate(self._value, self.update_steps)

    @functools.cached_property
    def _sparsities(self) -> np.ndarray | None:
        """The sparsity of every mask update, float32; None if a field is traced."""
        return None if self._values is None else np.asarray(self._values, np.float32)

    @functools.cached_property
    def _progresses(self) -> np.ndarray | None:
        """The progress at every mask update, float32; None if a field is traced."""
        if self._values is None:
            return None
        return np.asarray([self._progress(value) for value in self._values], np.float32)

    @property
    def _ends(self) -> tuple[Any, Any]:
        """The initial and the final sparsity, float32 where a field is traced."""
        ends = (self.initial_sparsity, self.final_sparsity)
        return ends if self.is_concrete else (_float32(ends[0]), _float32(ends[1]))

    def _value(self, step: Any) -> Any:
        """The sparsity at a mask update: float64 for numbers, float32 for tracers."""
        if self.fn is not None:
            return self.fn(step)
        one_step = not (is_traced(self.begin_step) or is_traced(self.end_step)) and (
            self.begin_step == self.end_step
        )
        if one_step:
            return self._ends[1]
        number: Any = float if self.is_concrete else _float32
        done, window = step - self.begin_step, self.end_step - self.begin_step
        remaining = 1 - number(done) / number(window)
        initial, final = self._ends
        power = _float32(self.power) if is_traced(self.power) else self.power
        return final + (initial - final) * remaining**power

    def _progress(self, value: Any) -> Any:
        """How much of the way is done where the sparsity is that of `_value`."""
        initial, final = self._ends
        difference = final - initial
        if not is_traced(difference) and difference == 0:
            return 0.0 * value  # nothing to go: it jumps at the end
        done = (value - initial) / difference
        return jnp.clip(done, 0, 1) if is_traced(done) else min(max(done, 0.0), 1.0)


def polynomial_schedule(
    final_sparsity: ArrayLike,
    begin_step: int,
    end_step: int,
    every: int = 100,
    initial_sparsity: ArrayLike = 0.0,
    power: float = 3,
) -> SparsitySchedule:
    r"""Sparsity that rises fast at first and levels off: the paper's schedule.

    $$
    s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^p
    $$

    at the mask updates $t = t_0, t_0 + \Delta t, \dots, t_1$.

    Args:
      final_sparsity: $s_f$, the fraction of zeros in the end, in [0, 1].
        May be a tracer, for example to `vmap` over targets.
      begin_step: $t_0$, the first step that updates masks, at least 0. Steps
        count optimizer updates, from 0.
      end_step: $t_1$, the last step that updates masks, at least `begin_step`.
        Training needs at least `end_step + 1` updates.
      every: $\Delta t$, steps between mask updates, at least 1.
      initial_sparsity: $s_i$, in [0, 1]; may be a tracer.
      power: $p$, positive; 3 in the paper, 1 is linear.

    Returns:
      The schedule.

    Raises:
      ValueError: if a concrete argument is outside its range.

    Examples:
      >>> schedule = polynomial_schedule(0.9, begin_step=1_000, end_step=10_000)
      >>> print(schedule.sparsity(10_000))
      0.9

    References:
      Zhu and Gupta, [To prune, or not to prune](https://arxiv.org/abs/1710.01878),
      2017, equation (1).
    """
    return SparsitySchedule(
        begin_step, end_step, every, initial_sparsity, final_sparsity, power
    )


def one_shot_schedule(final_sparsity: ArrayLike, step: int) -> SparsitySchedule:
    """Dense before `step`, pruned at `step` once and for all.

    Args:
      final_sparsity: the fraction of zeros from `step` on, in [0, 1]; may be a tracer.
      step: the only step that updates masks, at least 0.

    Returns:
      The schedule.

    Raises:
      ValueError: if a concrete argument is outside its range.

    Examples:
      >>> schedule = one_shot_schedule(0.5, step=100)
      >>> print(schedule.sparsity(99), schedule.sparsity(100))
      0.0 0.5
    """
    step = check_integer("step", step, minimum=0)
    return polynomial_schedule(final_sparsity, step, step, every=1)


def custom_schedule(
    fn: Callable[[Any], ArrayLike], begin_step: int, end_step: int, every: int = 100
) -> SparsitySchedule:
    """Sparsity as any function of the step, such as an optax schedule.

    The function is evaluated once for each mask update, when the schedule is made. If
    its values are tracers, it is evaluated at both ends then, and inside the step.
    Masks never grow: where the function falls, the sparsity reached stays.

    Args:
      fn: maps a step (int32 scalar) to a sparsity in [0, 1]. It may close over
        tracers.
      begin_step: the first step that updates masks, at least 0.
      end_step: the last step that updates masks, at least `begin_step`.
      every: steps between mask updates, at least 1.

    Returns:
      The schedule; its initial and final sparsity are `fn(begin_step)` and
      `fn(end_step)`.

    Raises:
      ValueError: if a concrete argument is outside its range, or a value of `fn` is.

    Examples:
      >>> import optax
      >>> warmup = optax.linear_schedule(0.0, 0.5, transition_steps=100)
      >>> schedule = custom_schedule(warmup, begin_step=0, end_step=100, every=50)
      >>> print(schedule.sparsity(50))
      0.25
    """
    begin_step, end_step, every = check_window(begin_step, end_step, every)
    if not callable(fn):
        raise ValueError(f"fn is {fn!r}; it must map a step to a sparsity in [0, 1].")
    window = (begin_step, end_step, every)
    if any(map(is_traced, window)):
        return SparsitySchedule(*window, fn(begin_step), fn(end_step), fn=fn)
    (initial,) = _checked_values(fn, [begin_step])
    if is_traced(initial):
        (final,) = _checked_values(fn, [end_step])
        return SparsitySchedule(*window, initial, final, fn=fn)
    later = range(begin_step + every, end_step, every)
    ends = [end_step] if end_step > begin_step else []
    values = [initial, *_checked_values(fn, [*later, *ends])]
    schedule = SparsitySchedule(*window, initial, values[-1], fn=fn)
    if schedule.is_concrete:
        schedule.__dict__["_values"] = values  # the function is not called again
    return schedule


def _checked_values(fn: Callable[[Any], Any], steps: Sequence[int]) -> list[Any]:
    """The sparsities that a user's function gives, refused outside [0, 1]."""
    return [
        check_sparsity(f"fn({step})", value)
        for step, value in zip(steps, _evaluate(fn, steps), strict=True)
    ]


def _evaluate(curve: Callable[[Any], Any], steps: Sequence[int]) -> list[Any]:
    """The curve at concrete steps, now, even while an outer function is traced."""
    with jax.ensure_compile_time_eval():
        # A NumPy scalar has the dtype that optax schedules expect, and computes in
        # float64 where the function is plain Python.
        return [curve(np.int32(step)) for step in steps]


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
