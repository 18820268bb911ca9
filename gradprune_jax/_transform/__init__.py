"""The optax links: what pruning does to an update of the optimizer.

`links` has `gradual_prune`, whose masks follow a schedule, and `keep_masks`, whose
masks never change; `wrapper` has `with_gradual_prune`, which also masks the gradient
before the optimizer sees it. All of them bring together the update, the weight, the
mask and the rule of each leaf in one walk over the tree (`leaves`), and zero what is
pruned. Which weights stay is decided in `_mask_update`.

`partition_specs` reads where the leaves lie inside `shard_map`, `order` makes a mask
update on a mesh of CPU devices wait for the updates, and `line_search` keeps the losses
of optax's line searches true.
"""

# The names beside the links are what sparse training is made of too.
from gradprune_jax._transform.leaves import LeafUpdate as LeafUpdate
from gradprune_jax._transform.leaves import UpdateTree as UpdateTree
from gradprune_jax._transform.leaves import as_arrays as as_arrays
from gradprune_jax._transform.leaves import check_given as check_given
from gradprune_jax._transform.leaves import pair_leaves as pair_leaves
from gradprune_jax._transform.line_search import forget_losses as forget_losses
from gradprune_jax._transform.line_search import of_masked_loss as of_masked_loss
from gradprune_jax._transform.links import gradual_prune as gradual_prune
from gradprune_jax._transform.links import keep_masks as keep_masks
from gradprune_jax._transform.order import after as after
from gradprune_jax._transform.partition_specs import shards as shards
from gradprune_jax._transform.scoring import check_needs_none as check_needs_none
from gradprune_jax._transform.wrapper import with_gradual_prune as with_gradual_prune
