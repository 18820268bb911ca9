"""The exact k largest (face written by another hand)."""

from gradprune_jax._top_k.counting import Units as Units
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
from gradprune_jax._top_k.keys import wider_dtype as wider_dtype
from gradprune_jax._top_k.selection import top_k as top_k
from gradprune_jax._top_k.shards import Shard as Shard
from gradprune_jax._top_k.shards import axis_size as axis_size
from gradprune_jax._top_k.shards import parts as parts
from gradprune_jax._top_k.shards import whole as whole
from gradprune_jax._top_k.summation import LONGEST_GROUP as LONGEST_GROUP
from gradprune_jax._top_k.summation import Reduction as Reduction
from gradprune_jax._top_k.summation import add_up as add_up
from gradprune_jax._top_k.summation import group_sizes as group_sizes
from gradprune_jax._top_k.summation import reduce_groups as reduce_groups
from gradprune_jax._top_k.summation import split_axis as split_axis
