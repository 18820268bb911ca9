"""Reports on a pruned model, for people: tables and pictures.

Needs the extra `report`: `pip install "gradprune_jax[report]"`.
"""

from gradprune_jax.report.mask_images import plot_masks as plot_masks
from gradprune_jax.report.plots import plot_schedule as plot_schedule
from gradprune_jax.report.plots import plot_sensitivity as plot_sensitivity
from gradprune_jax.report.plots import plot_sparsity as plot_sparsity
from gradprune_jax.report.plots import plot_tradeoff as plot_tradeoff
from gradprune_jax.report.table import tabulate as tabulate
