"""One rule's mask update: where it is decided which weights stay.

The transformation calls `masks_at_step` for each rule. On an update step of the
schedule (`step`) it recomputes the masks (`update`): `allocation` says how many units
each leaf keeps (`erk`, `floors`, with exact rounding in `rounding`), `units` by which
keys the units are ranked, and the exact k largest are found by `_top_k`. N:M selects
within its groups alone (`nm`). Coupled channels have one score for all the leaves that
they lie in (`coupled`). `blocks` cuts a leaf into the blocks of its structure,
`pooling` and `means` reduce each of them to one score.

A new allocation goes into `allocation`; a new score into `_scores`.
"""

from gradprune_jax._mask_update.allocation import LARGEST_LEAF as LARGEST_LEAF
from gradprune_jax._mask_update.allocation import kept_in_the_end as kept_in_the_end
from gradprune_jax._mask_update.leaf import PrunedLeaf as PrunedLeaf
from gradprune_jax._mask_update.leaf import with_masks as with_masks
from gradprune_jax._mask_update.leaf import without_masks as without_masks
from gradprune_jax._mask_update.nm import group_kept as group_kept
from gradprune_jax._mask_update.nm import largest_in_groups as largest_in_groups
from gradprune_jax._mask_update.rounding import kept_count as kept_count
from gradprune_jax._mask_update.rounding import rounded_product as rounded_product
from gradprune_jax._mask_update.slices import Slice as Slice
from gradprune_jax._mask_update.slices import slices_of_groups as slices_of_groups
from gradprune_jax._mask_update.slices import slices_of_leaf as slices_of_leaf
from gradprune_jax._mask_update.step import masks_at_step as masks_at_step
from gradprune_jax._mask_update.update import update_masks as update_masks
