"""Schedules: at which steps the masks change, and how sparse they are then.

A `SparsitySchedule` is a window of mask updates and a curve of sparsities. Users make
one by `polynomial_schedule` (the paper's), `one_shot_schedule` or `custom_schedule`.
Its values come from a table that is computed on the host in float64, so they do not
depend on how XLA fuses a polynomial.

The names below `SparsitySchedule` are for this library alone: they read a schedule for
the allocation, the plan and the compiled mask update.
"""

from gradprune_jax._schedules.constructors import custom_schedule as custom_schedule
from gradprune_jax._schedules.constructors import one_shot_schedule as one_shot_schedule
from gradprune_jax._schedules.constructors import (
    polynomial_schedule as polynomial_schedule,
)
from gradprune_jax._schedules.constructors import with_table as with_table
from gradprune_jax._schedules.schedule import SparsitySchedule as SparsitySchedule
from gradprune_jax._schedules.schedule import extremes as extremes
from gradprune_jax._schedules.schedule import is_concrete as is_concrete
from gradprune_jax._schedules.schedule import progress as progress
