"""Results: what the two trainings measured, as a dictionary for a machine to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

import gradprune_jax as gp

if TYPE_CHECKING:
    from gradprune_jax.demo.training import Run, Training


def summarise(
    training: Training, rule: gp.Rule, dense: Run, pruned: Run
) -> dict[str, Any]:
    """Measure both runs, in plain Python numbers, ready for JSON.

    Args:
      training: what both runs shared.
      rule: the rule of the pruned run.
      dense: the run without pruning.
      pruned: the run with it.

    Returns:
      A dictionary of settings, of both runs' accuracies and counts, and of each
      parameter of the pruned network.

    Raises:
      ValueError: if a pruned weight is not zero or a weight is not finite.
    """
    gp.check_pruned(pruned.params, pruned.opt_state)
    schedule: Any = rule.schedule
    plan = gp.plan(rule, pruned.params)
    masks = jax.tree.leaves(gp.get_masks(pruned.opt_state), is_leaf=_is_dense)
    parameters = [
        _describe(planned.path, np.asarray(leaf), mask)
        for planned, leaf, mask in zip(
            plan.leaves, jax.tree.leaves(pruned.params), masks, strict=True
        )
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
        "dense": _describe_run(dense, plan),
        "pruned": _describe_run(pruned, plan),
        "parameters": parameters,
        "pruned_weights": sum(parameter["pruned"] for parameter in parameters),
        "pruned_weights_not_zero": sum(
            parameter["pruned_not_zero"] for parameter in parameters
        ),
    }


def curves(dense: Run, pruned: Run) -> dict[str, Any]:
    """Return the curves of both runs: too long to print, worth keeping in a file."""
    return {
        "evaluated_at": list(dense.evaluated_at),
        "dense_accuracy": list(dense.accuracies),
        "pruned_accuracy": list(pruned.accuracies),
        "dense_loss": dense.losses.tolist(),
        "pruned_loss": pruned.losses.tolist(),
        "sparsity": pruned.sparsities.tolist(),
    }


def mask_of(run: Run, path: str) -> np.ndarray:
    """Return the mask of one parameter of the pruned run, bool of its shape."""
    masks = jax.tree_util.tree_leaves_with_path(gp.get_masks(run.opt_state))
    named = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): mask
        for keys, mask in masks
    }
    return np.asarray(named[path])


def _is_dense(mask: Any) -> bool:
    """Whether a mask stands for a parameter that is not pruned."""
    return isinstance(mask, optax.MaskedNode)


def _describe_run(run: Run, plan: gp.Plan) -> dict[str, Any]:
    """Describe the outcome of one run, with the parameters that a plan prunes."""
    leaves = list(map(np.asarray, jax.tree.leaves(run.params)))
    prunable = [
        leaf
        for planned, leaf in zip(plan.leaves, leaves, strict=True)
        if planned.rule is not None
    ]
    return {
        "accuracy": run.accuracies[-1],
        "correct": run.correct[-1],
        "final_loss": float(run.losses[-1]),
        "prunable": sum(leaf.size for leaf in prunable),
        "prunable_nonzero": sum(int(np.count_nonzero(leaf)) for leaf in prunable),
        "parameters": sum(leaf.size for leaf in leaves),
        "parameters_nonzero": sum(int(np.count_nonzero(leaf)) for leaf in leaves),
        "seconds": round(run.seconds, 1),
    }


def _describe(name: str, leaf: np.ndarray, mask: Any) -> dict[str, Any]:
    """Describe one parameter of the pruned network, and count what is not +0.0."""
    pruned = np.zeros(leaf.shape, bool) if _is_dense(mask) else ~np.asarray(mask)
    # A weight of -0.0 compares equal to zero, and is not what is promised.
    is_zero = (leaf == 0) & ~np.signbit(leaf)
    return {
        "path": name,
        "shape": list(leaf.shape),
        "weights": leaf.size,
        "nonzero": int(np.count_nonzero(leaf)),
        "masked": not _is_dense(mask),
        "pruned": int(pruned.sum()),
        "pruned_not_zero": int((pruned & ~is_zero).sum()),
    }
