"""Sensitivity: how much each parameter may be pruned, by the loss.

- `losses`: `sensitivity` measures the loss as each parameter alone is pruned.
- `allocation`: `allocate_sparsity` gives each parameter a sparsity of its own, so that
  the model keeps a budget and the loss rises least, by those measurements; `greedy`
  chooses.
"""

from gradprune_jax._sensitivity.allocation import (
    SparsityAllocation as SparsityAllocation,
)
from gradprune_jax._sensitivity.allocation import allocate_sparsity as allocate_sparsity
from gradprune_jax._sensitivity.losses import Sensitivity as Sensitivity
from gradprune_jax._sensitivity.losses import sensitivity as sensitivity
