"""Scores: by what weights are ranked, if not by their magnitudes.

A score makes one number of every weight, in one array of the leaf's shape. The weights
of the highest numbers stay. Products are elementwise and in float32 at least, so the
numbers have the same bits on every layout. Running sums and means are kept for each
weight, in arrays like the parameters.

`base` says what a score is and what it sees of a leaf, `scores` has those of this
library, `own` makes one of a user's function, and `random_numbers` draws numbers.

A new score is a class in `scores`, and a name in `_rules/json.py`.
"""

from gradprune_jax._scores.base import Score as Score
from gradprune_jax._scores.base import ScoredLeaf as ScoredLeaf
from gradprune_jax._scores.base import score_dtype as score_dtype
from gradprune_jax._scores.own import AnyScore as AnyScore
from gradprune_jax._scores.own import as_score as as_score
from gradprune_jax._scores.random_numbers import uniform as uniform
from gradprune_jax._scores.scores import Fisher as Fisher
from gradprune_jax._scores.scores import Magnitude as Magnitude
from gradprune_jax._scores.scores import Movement as Movement
from gradprune_jax._scores.scores import Random as Random
from gradprune_jax._scores.scores import Saliency as Saliency
