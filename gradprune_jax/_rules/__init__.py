"""Rules: which leaf is pruned, on which schedule, in which structure.

A user writes rules, and the first that matches a leaf prunes it. `rule` has the
dataclass `Rule`; `weights` says which leaves are weights by the names of libraries,
what a rule without `where` prunes; `matching` finds the rule of each leaf, with errors
for rules that match nothing and a warning for weights that no rule matches; `fit`
refuses a leaf that its rule cannot prune; `json` writes rules to files and reads them.
"""

from gradprune_jax._rules.json import rules_from_json as rules_from_json
from gradprune_jax._rules.json import rules_to_json as rules_to_json
from gradprune_jax._rules.matching import assign as assign
from gradprune_jax._rules.matching import selected_leaves as selected_leaves
from gradprune_jax._rules.matching import selects as selects
from gradprune_jax._rules.matching import unmatched_matrices as unmatched_matrices
from gradprune_jax._rules.matching import warn_of_dense_weights as warn_of_dense_weights
from gradprune_jax._rules.rule import Allocation as Allocation
from gradprune_jax._rules.rule import Rule as Rule
from gradprune_jax._rules.rule import ScheduleOrRules as ScheduleOrRules
from gradprune_jax._rules.rule import Where as Where
from gradprune_jax._rules.rule import as_rules as as_rules
from gradprune_jax._rules.weights import is_weight as is_weight
from gradprune_jax._rules.weights import last_name as last_name
