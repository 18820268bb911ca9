"""The exact top k: which units of the largest keys stay, found by counting alone.

The bits of a non-negative float, read as an integer, sort like the float (`keys`). So
the k-th largest magnitude is found by a search over integers (`search`), which asks the
data one question only: how many units reach this threshold? (`units` of one leaf,
`ranking` of all leaves.) A count is the same in any order and on any number of devices
(`summation`; `devices` tells where an axis is split), and on a mesh it costs one
all-reduce of a few integers (`shards`). Where to probe next is a policy (`policies`),
which for large leaves begins at a guess from a sample (`sampling`). Ties at the
threshold are broken by the same search over flat indices (`selection`). Small leaves
are copied into bins, which one compiled search serves in turn (`packing`). Outside
`jit` the loops are Python's (`control`). Counts pass 32 bits without 64-bit types
(`counts`).

Glossary:

- unit: what is kept or dropped together, a weight, a block or a channel.
- slice: a leaf, or one layer of a stacked leaf; for `min_per_channel`, one output
  channel of it. Its units are counted together.
- group: the slices that share a threshold. Either each slice is a group of its own, or
  all slices are one group.
- key: the unsigned integer that ranks a unit, larger for larger magnitudes or scores,
  and 0 for a unit that is pruned already.
- threshold: an integer. A unit reaches it if its key is at least as large.
- position: how many slices come before those of a leaf, among all that are ranked.
- bin: rows of equal length, into which the slices of several small leaves are copied.
- probe: a threshold that a pass over the data tries: it counts the units that reach it.
- bracket: the two thresholds between which a group's wanted threshold lies.
- tie: a unit whose key equals the threshold that was found.
- live, pruned: a unit whose mask is True, or False.
"""

# The names beside `top_k`, `Units` and `Shard` are the arithmetic of counts and keys
# that allocation and the scores of blocks share.
from gradprune_jax._top_k.counts import LARGEST_COUNT as LARGEST_COUNT
from gradprune_jax._top_k.counts import Count as Count
from gradprune_jax._top_k.counts import array_namespace as array_namespace
from gradprune_jax._top_k.counts import count_true as count_true
from gradprune_jax._top_k.counts import maximum as maximum
from gradprune_jax._top_k.counts import minimum as minimum
from gradprune_jax._top_k.counts import select as select
from gradprune_jax._top_k.counts import total as total
from gradprune_jax._top_k.keys import is_nonzero as is_nonzero
from gradprune_jax._top_k.keys import key_dtype as key_dtype
from gradprune_jax._top_k.keys import largest_key as largest_key
from gradprune_jax._top_k.keys import ranking_dtype as ranking_dtype
from gradprune_jax._top_k.keys import ranking_keys as ranking_keys
from gradprune_jax._top_k.keys import score_keys as score_keys
from gradprune_jax._top_k.keys import wider_dtype as wider_dtype
from gradprune_jax._top_k.selection import top_k as top_k
from gradprune_jax._top_k.shards import Shard as Shard
from gradprune_jax._top_k.shards import axis_size as axis_size
from gradprune_jax._top_k.shards import parts as parts
from gradprune_jax._top_k.shards import whole as whole
from gradprune_jax._top_k.summation import LONGEST_RUN as LONGEST_RUN
from gradprune_jax._top_k.summation import Reduction as Reduction
from gradprune_jax._top_k.summation import add_up as add_up
from gradprune_jax._top_k.summation import divisors as divisors
from gradprune_jax._top_k.summation import reduce_runs as reduce_runs
from gradprune_jax._top_k.summation import run_sizes as run_sizes
from gradprune_jax._top_k.summation import split_axis as split_axis
from gradprune_jax._top_k.units import STATIC as STATIC
from gradprune_jax._top_k.units import Units as Units
