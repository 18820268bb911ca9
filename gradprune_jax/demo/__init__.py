"""The demonstration behind `gradprune demo`: one network, trained dense and pruned.

- `data` reads the images: 10,000 of Fashion-MNIST that come with the package, or a
  folder of files in the same format.
- `models` has one small network in both Flax APIs, `learners` its training step in
  each; neither knows of pruning.
- `training` is the loop. The pruned network has one more link in its optimizer, and
  nothing else is different.
- `shrinking` cuts a network of which whole channels were pruned, and times both.
- `results` measures what both trainings made, `figure` draws it.

The command itself is in the command line, and uses these modules.
"""

from gradprune_jax.demo import data as data
from gradprune_jax.demo import figure as figure
from gradprune_jax.demo import learners as learners
from gradprune_jax.demo import models as models
from gradprune_jax.demo import results as results
from gradprune_jax.demo import shrinking as shrinking
from gradprune_jax.demo import training as training
