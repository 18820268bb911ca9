"""Pruning for Keras 3 on the JAX backend: an optimizer around the optimizer.

    optimizer = gradprune_jax.keras.GradualPrune(keras.optimizers.Adam(), schedule)
    model.compile(optimizer=optimizer, loss=..., metrics=...)
    model.fit(...)                                    # and all else as before

Keras has optimizers of its own, which are no optax transformations.

- `optimizer`: `GradualPrune` is one of them. Masks and the count of updates are its
  variables, so `model.fit` carries them from step to step, `model.save` stores them and
  `load_model` brings them back.
- `variables` names them, and says which are pruned by default.
- `inspection`: `plan`, `get_masks`, `set_masks` and `check_pruned` of a model, and
  `LogSparsity`, which adds the sparsity to the progress line, the history and every
  log.

Needs the extra `keras`: `pip install "gradprune_jax[keras]"`. Import it, or set
`KERAS_BACKEND=jax`, before Keras chooses another backend.
"""

import os

# This module works on JAX alone, so it chooses it where nothing is chosen yet.
os.environ.setdefault("KERAS_BACKEND", "jax")

try:
    import keras as _keras
except ImportError:
    raise ImportError(
        'gradprune_jax.keras needs Keras 3: pip install "gradprune_jax[keras]"'
    ) from None

if _keras.backend.backend() != "jax":
    raise ImportError(
        f"Keras runs on {_keras.backend.backend()!r}, and gradprune_jax on JAX alone: "
        "set the environment variable KERAS_BACKEND=jax before Keras is imported."
    )

from gradprune_jax.keras.inspection import LogSparsity as LogSparsity
from gradprune_jax.keras.inspection import check_pruned as check_pruned
from gradprune_jax.keras.inspection import get_masks as get_masks
from gradprune_jax.keras.inspection import plan as plan
from gradprune_jax.keras.inspection import set_masks as set_masks
from gradprune_jax.keras.optimizer import GradualPrune as GradualPrune
