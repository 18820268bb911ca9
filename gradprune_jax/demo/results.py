"""What the two trainings measured, as one object for a machine to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import gradprune_jax as gp
from gradprune_jax import _tree
from gradprune_jax._pairing import pair_with_masks
from gradprune_jax._state import is_dense

if TYPE_CHECKING:
    from gradprune_jax.demo.training import Run, Training


def summarise(
    training: Training, schedule: gp.SparsitySchedule, dense: Run, pruned: Run
) -> dict[str, Any]:
    """Everything that was measured, in plain Python numbers, ready for JSON.

    Args:
      training: what both runs shared.
      schedule: the schedule of the pruned run.
      dense: the run without pruning.
      pruned: the run with it.

    Returns:
      A dictionary of settings, of both runs' accuracies and counts, and of each
      parameter of the pruned network.

    Raises:
      ValueError: if a pruned weight is not zero or a weight is not finite.
    """
    gp.check_pruned(pruned.params, pruned.opt_state)
    masks = gp.get_masks(pruned.opt_state)
    parameters = [
        _describe(name, np.asarray(leaf), mask)
        for name, leaf, mask in pair_with_masks(pruned.params, masks)
    ]
    return {
        "training": {
            "images": training.source,
            "seed": training.seed,
            "epochs": training.epochs,
            "steps": training.steps,
            "batch_size": training.batch_size,
            "train_images": len(training.dataset.train_labels),
            "test_images": len(training.dataset.test_labels),
        },
        "schedule": {
            "final_sparsity": float(schedule.final_sparsity),
            "begin_step": schedule.begin_step,
            "end_step": schedule.end_step,
            "every": schedule.every,
            "mask_updates": len(schedule.update_steps),
        },
        "dense": _describe_run(dense, masks),
        "pruned": _describe_run(pruned, masks),
        "parameters": parameters,
        "pruned_weights": sum(parameter["pruned"] for parameter in parameters),
        "pruned_weights_not_zero": sum(
            parameter["pruned_not_zero"] for parameter in parameters
        ),
    }


def curves(dense: Run, pruned: Run) -> dict[str, Any]:
    """The curves of both runs: too long to print, worth keeping in a file."""
    return {
        "evaluated_at": list(dense.evaluated_at),
        "dense_accuracy": list(dense.accuracies),
        "pruned_accuracy": list(pruned.accuracies),
        "dense_loss": dense.losses.tolist(),
        "pruned_loss": pruned.losses.tolist(),
        "sparsity": pruned.sparsities.tolist(),
    }


def mask_of(run: Run, path: str) -> np.ndarray:
    """The mask of one parameter of the pruned run, bool of the parameter's shape."""
    masks = _tree.named_leaves(gp.get_masks(run.opt_state), is_dense)
    return np.asarray(next(leaf.value for leaf in masks if leaf.name == path))


def _describe_run(run: Run, masks: Any) -> dict[str, Any]:
    """The outcome of one run; `masks` tell which of its parameters can be pruned."""
    leaves = [
        (np.asarray(leaf), is_dense(mask))
        for _, leaf, mask in pair_with_masks(run.params, masks)
    ]
    prunable = [leaf for leaf, has_no_mask in leaves if not has_no_mask]
    return {
        "accuracy": run.accuracies[-1],
        "correct": run.correct[-1],
        "final_loss": float(run.losses[-1]),
        "prunable": sum(leaf.size for leaf in prunable),
        "prunable_nonzero": sum(int(np.count_nonzero(leaf)) for leaf in prunable),
        "parameters": sum(leaf.size for leaf, _ in leaves),
        "parameters_nonzero": sum(int(np.count_nonzero(leaf)) for leaf, _ in leaves),
        "seconds": round(run.seconds, 1),
    }


def _describe(name: str, leaf: np.ndarray, mask: Any) -> dict[str, Any]:
    """One parameter of the pruned network, with the promise checked bit for bit."""
    pruned = np.zeros(leaf.shape, bool) if is_dense(mask) else ~np.asarray(mask)
    # A weight of -0.0 compares equal to zero, and is not what is promised.
    is_zero = (leaf == 0) & ~np.signbit(leaf)
    return {
        "path": name,
        "shape": list(leaf.shape),
        "weights": leaf.size,
        "nonzero": int(np.count_nonzero(leaf)),
        "masked": not is_dense(mask),
        "pruned": int(pruned.sum()),
        "pruned_not_zero": int((pruned & ~is_zero).sum()),
    }
