"""The schedule of sparse training: when weights move, and how many."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class DropSchedule:
    r"""Which fraction of the live weights is dropped at which step.

    $$
    f(t) = \frac{d}{2} \Big( 1 + \cos \frac{\pi (t - t_0)}{t_1 - t_0} \Big)
    $$

    at the steps $t_0, t_0 + \Delta t, \dots$ before $t_1$.

    Attributes:
      begin_step: $t_0$.
      end_step: $t_1$.
      every: $\Delta t$.
      drop_fraction: d.

    Examples:
      >>> schedule = DropSchedule(0, 100, 50, 0.5)
      >>> [float(schedule.fraction(jnp.int32(step))) for step in (0, 50)]
      [0.5, 0.25]

    References:
      Evci et al., [Rigging the lottery](https://arxiv.org/abs/1911.11134), 2020,
      equation 1.
    """

    begin_step: int
    end_step: int
    every: int
    drop_fraction: float

    def is_update_step(self, step: jax.Array) -> jax.Array:
        """Whether weights move at a step."""
        since = step - self.begin_step
        is_inside = (since >= 0) & (step < self.end_step)
        return is_inside & (since % self.every == 0)

    def fraction(self, step: jax.Array) -> jax.Array:
        """The fraction at one of these steps, float32."""
        row = (step - self.begin_step) // self.every
        return jnp.asarray(self._table)[jnp.clip(row, 0, len(self._table) - 1)]

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The fraction of every update.

        Computed on the host: one bit less, from a program that fuses it otherwise,
        would move a weight more.
        """
        steps = np.arange(self.begin_step, self.end_step, self.every, dtype=np.float64)
        length = self.end_step - self.begin_step
        turned = np.cos(np.pi * (steps - self.begin_step) / length)
        return (self.drop_fraction / 2 * (1 + turned)).astype(np.float32)
