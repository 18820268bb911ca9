"""Calibration: pruning with the inputs that really reach each weight.

A function is traced, and every selected weight is followed through casts, reshapes,
transposes and slices (`views`, `view_steps`) to the one product that multiplies it by
inputs (`products`, `reads`). The function is cut at these products (`pieces`) and run
piece by piece on all batches (`evaluation`, `walk`). At each stop the weight is
replaced (`weights`) by what a method makes of it and of its inputs (`method`: `wanda`,
`sparse_gpt`, with the exact top k by `selection`), so that all that follows is computed
from pruned weights. `targets` says how sparse each becomes. `pruning` and `norms` are
what users call.

Glossary:

- product: a matrix product or convolution that multiplies a weight by inputs.
- group, output, input: the axes of a weight as a method sees it, [groups, outputs,
  inputs]. Inputs are summed over; groups are products apart, such as experts.
- sample: one row of inputs: a token, an image, a patch of an image.
- statistic: what is summed over all samples of a weight's inputs.
- dimension: a part of an axis of a parameter, as reshapes split it.
- layer: one index of a stacked parameter, by a slice or in a loop over all of them.
- turn: of a loop, which is what tells the layer there.
"""

from gradprune_jax._calibration.method import CalibratedMethod as CalibratedMethod
from gradprune_jax._calibration.norms import input_norms as input_norms
from gradprune_jax._calibration.pruning import prune_calibrated as prune_calibrated
from gradprune_jax._calibration.sparse_gpt import SparseGPT as SparseGPT
from gradprune_jax._calibration.wanda import Wanda as Wanda
