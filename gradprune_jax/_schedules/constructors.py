"""Constructors: the paper's polynomial, one shot, any function, or its table."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax.typing import ArrayLike

from gradprune_jax._checks import (
    check_integer,
    check_sparsity,
    check_window,
    is_traced,
)
from gradprune_jax._schedules.schedule import SparsitySchedule, evaluate, is_concrete


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
    """Prunes once, at `step`: dense before it, sparse from then on.

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
    """Makes a schedule from a function of the step, such as an optax schedule.

    The function is called once for each mask update, when the schedule is made. If it
    returns tracers, it is called at `begin_step` and at `end_step` then, and again
    inside the training step. Masks never grow: where the function falls, the weights
    that are pruned already stay pruned.

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
    _, *later = (*range(begin_step, end_step, every), end_step)
    values = [initial, *_checked_values(fn, later)]
    schedule = SparsitySchedule(*window, initial, values[-1], fn=fn)
    if is_concrete(schedule):
        schedule.__dict__["_values"] = values  # the function is not called again
    return schedule


def with_table(schedule: SparsitySchedule) -> SparsitySchedule:
    """The same schedule, with a table of values in place of a user's function.

    Two functions are never equal, so a program that is compiled for one would be
    compiled anew for the other. Tables of equal values are equal.
    """
    if schedule.fn is None or schedule._values is None:
        return schedule
    values = tuple(float(value) for value in schedule._values)
    return dataclasses.replace(schedule, fn=_Table(schedule.update_steps, values))


@dataclasses.dataclass(frozen=True)
class _Table:
    """A function of the step, by its values at all mask updates."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __call__(self, step: Any) -> float:
        return self.values[bisect.bisect_left(self.steps, step)]


def _checked_values(fn: Callable[[Any], Any], steps: Sequence[int]) -> list[Any]:
    """The sparsities that a user's function gives, refused outside [0, 1]."""
    return [
        check_sparsity(f"fn({step})", value)
        for step, value in zip(steps, evaluate(fn, steps), strict=True)
    ]
