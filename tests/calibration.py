"""What the tests of calibrated pruning share: both papers in NumPy, and inputs."""

import numpy as np

import gradprune_jax as gp

METHODS = {"wanda": gp.Wanda(), "sparse_gpt": gp.SparseGPT(block_size=16)}


def inputs_like(seed, samples, features):
    """Correlated inputs of different sizes, as activations are."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(features) + 0.3 * rng.normal(size=(features, features))
    scale = np.exp(rng.normal(size=features))
    rows = rng.normal(size=(samples, features)) @ mixing * scale
    return rows.astype(np.float32)


def weights_like(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wanda(kernel, rows, sparsity, pattern=None):
    """Sun et al. (2023): the mask of a kernel [inputs, outputs]."""
    rows = rows.astype(np.float64)
    scores = np.abs(kernel.astype(np.float64)) * np.sqrt((rows**2).sum(0))[:, None]
    return mask_of(scores.T, sparsity, pattern, per_row=True).T


def sparse_gpt(kernel, rows, sparsity, pattern=None, damping=0.01, block_size=128):
    """Frantar and Alistarh (2023), algorithm 1, in float64: weights and mask."""
    weights = kernel.T.astype(np.float64)
    rows = rows.astype(np.float64)
    gram = rows.T @ rows
    gram += damping * np.mean(np.diag(gram)) * np.eye(len(gram))
    factor = np.linalg.cholesky(np.linalg.inv(gram)).T
    mask = np.zeros(weights.shape, bool)
    width = block_size if pattern is None else pattern[1]
    for start in range(0, weights.shape[1], block_size):
        stop = min(start + block_size, weights.shape[1])
        for column in range(start, stop):
            if (column - start) % width == 0:
                part = slice(column, min(column + width, stop))
                scores = (weights[:, part] / np.diag(factor)[part]) ** 2
                mask[:, part] = mask_of(scores, sparsity, pattern, per_row=False)
            gone = np.where(mask[:, column], 0, weights[:, column])
            error = gone / factor[column, column]
            weights[:, column:] -= np.outer(error, factor[column, column:])
    return np.where(mask, weights, 0).T, mask.T


def mask_of(scores, sparsity, pattern, *, per_row):
    """True where scores stay: of all, of each row, or of each group in a row."""
    grouped = scores.reshape(1, -1)
    if pattern is not None:
        grouped = scores.reshape(-1, pattern[1])
        sparsity = 1 - pattern[0] / pattern[1]
    elif per_row:
        grouped = scores
    mask = np.ones(grouped.shape, bool)
    order = np.argsort(grouped, axis=1, kind="stable")
    gone = order[:, : round(sparsity * grouped.shape[1])]
    np.put_along_axis(mask, gone, False, axis=1)
    return mask.reshape(scores.shape)


def error(kernel, pruned, rows):
    """How far the outputs of a layer are from those before, relative."""
    outputs, after = (
        rows.astype(np.float64) @ np.asarray(w, np.float64) for w in (kernel, pruned)
    )
    return np.linalg.norm(after - outputs) / np.linalg.norm(outputs)


def numpy_pruned(name, kernel, rows, sparsity, pattern=None):
    if name == "wanda":
        mask = wanda(kernel, rows, sparsity, pattern)
        return np.where(mask, kernel, 0), mask
    return sparse_gpt(kernel, rows, sparsity, pattern, block_size=16)


def assert_like_numpy(name, kernel, rows, found, mask, sparsity, pattern=None):
    """The masks but for near-ties, and the weights where they agree."""
    wanted, wanted_mask = numpy_pruned(name, kernel, rows, sparsity, pattern)
    found, mask = np.asarray(found, np.float32), np.asarray(mask)
    assert mask.sum() == wanted_mask.sum()
    assert np.mean(mask != wanted_mask) < 0.005
    np.testing.assert_array_equal(found[~mask], 0)
    assert not np.signbit(found[~mask]).any()
    if np.array_equal(mask, wanted_mask):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    limit = 1.02 * error(kernel, wanted, rows) + 1e-5
    assert error(kernel, found, rows) < limit
