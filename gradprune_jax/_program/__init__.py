"""A traced function, read as what it is: which dimensions it has, and what is zero.

`shrink` traces a function (`tracing`) and walks over its steps (`walks`). The first
walk finds which indices of which axes belong together (`units`), by the rules of
primitives (`rules/`). The second finds what is zero (`zeros`), the third which units
the sums need (`analysis`, `dead_code`). The fourth runs the same steps on smaller
arrays (`cut`). `groups` says what was found in words of parameters, and `optimizer`
cuts the state of an optimizer like them.

Glossary:

- step: one primitive operation of the traced function.
- variable: a value that a step reads or writes.
- unit: indices that are cut together, one of each axis that they lie along.
- group: units that lie along the same axes of parameters: a dimension of the function.
- fixed: never cut.
"""

from gradprune_jax._program.analysis import Analysis as Analysis
from gradprune_jax._program.cut import Cut as Cut
from gradprune_jax._program.groups import ChannelGroup as ChannelGroup
from gradprune_jax._program.groups import ChannelGroups as ChannelGroups
from gradprune_jax._program.optimizer import shrink_opt_state as shrink_opt_state
from gradprune_jax._program.rules import RULES as RULES
from gradprune_jax._program.rules import Elementwise as Elementwise
from gradprune_jax._program.rules import PrimitiveRule as PrimitiveRule
from gradprune_jax._program.rules import Product as Product
from gradprune_jax._program.rules import bind as bind
from gradprune_jax._program.shrink import channel_groups as channel_groups
from gradprune_jax._program.shrink import shrink as shrink
from gradprune_jax._program.shrunk import Shrunk as Shrunk
from gradprune_jax._program.tracing import Program as Program
from gradprune_jax._program.tracing import Step as Step
from gradprune_jax._program.tracing import Trace as Trace
from gradprune_jax._program.tracing import trace as trace
from gradprune_jax._program.zeros import Zeros as Zeros
