"""Reports on a pruned model, for people: tables and pictures.

- `tabulate` is a table of parameters or masks, drawn by rich.
- `plot_schedule` shows what will happen: sparsity over the steps of a training.
- `plot_sparsity` and `plot_masks` show the result: how many weights of each parameter
  are zero, and which.
- `plot_mask_history` shows which weights were dropped and grown as a network was
  trained.
- `plot_groups` shows how wide a network is, before and after `shrink`.
- `plot_sensitivity`, `plot_allocation` and `plot_tradeoff` help to choose: the loss as
  one parameter is pruned, the sparsity of each under a budget, and a metric against the
  number of weights that are left.

Every `plot_*` returns a matplotlib figure: save it by `figure.savefig`, or let a
notebook show it. It opens no window and does not change pyplot's state.

Needs the extra `report`: `pip install "gradprune_jax[report]"`.
"""

from gradprune_jax.report.curves import plot_schedule as plot_schedule
from gradprune_jax.report.curves import plot_sensitivity as plot_sensitivity
from gradprune_jax.report.curves import plot_tradeoff as plot_tradeoff
from gradprune_jax.report.group_sizes import plot_groups as plot_groups
from gradprune_jax.report.mask_history import plot_mask_history as plot_mask_history
from gradprune_jax.report.mask_images import plot_masks as plot_masks
from gradprune_jax.report.sparsity_plot import plot_allocation as plot_allocation
from gradprune_jax.report.sparsity_plot import plot_sparsity as plot_sparsity
from gradprune_jax.report.table import tabulate as tabulate
