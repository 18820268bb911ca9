"""The plan: what rules would do to a model, from its shapes alone.

`dry_run` finds the rule of every leaf and how much of it stays, by the arithmetic of
the mask update. `table` holds the result and prints it; layers that are alike are one
row (`folding`). `checks` refuses what cannot be planned, `advice` says what looks as if
another axis were meant. `fitting` finds the sparsity that keeps a budget.
"""

from gradprune_jax._plan.dry_run import plan as plan
from gradprune_jax._plan.fitting import cost_of as cost_of
from gradprune_jax._plan.fitting import dense_names as dense_names
from gradprune_jax._plan.leaf import GroupPlan as GroupPlan
from gradprune_jax._plan.leaf import LeafPlan as LeafPlan
from gradprune_jax._plan.table import Plan as Plan
