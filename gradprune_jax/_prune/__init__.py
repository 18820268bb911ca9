"""Pruning once, without an optimizer or a schedule.

- `one_shot`: `prune`, the parameters with zeros and their masks.
- `fitting`: the sparsity that keeps a budget.
- `masks`: the masks of one rule, from a compiled program.
"""

from gradprune_jax._prune.masks import masks_of_rule as masks_of_rule
from gradprune_jax._prune.one_shot import prune as prune
