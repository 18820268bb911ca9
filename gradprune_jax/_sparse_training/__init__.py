"""Sparse training: as many live weights from the first step to the last.

`transform` wraps an optimizer: masks begin random, its gradients are masked, and on
some steps each leaf drops its smallest weights and grows as many others
(`regrowth`, by two exact selections), whose optimizer state begins anew (`reset`).
Which steps these are, and how many weights move, is a table (`drop_schedule`).

`straight_through` (`estimator`) needs no optimizer: in a loss it makes parameters
sparse, and hands their gradients to the dense ones.
"""

from gradprune_jax._sparse_training.estimator import (
    straight_through as straight_through,
)
from gradprune_jax._sparse_training.transform import (
    with_sparse_training as with_sparse_training,
)
