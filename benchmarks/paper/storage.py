"""The bytes that parameters take: dense, with a bit mask, and as compressed rows.

Zhu & Gupta 2017 compare networks at equal non-zeros, and remind that a sparse format
has an overhead: a bit mask costs one bit for every weight, compressed sparse rows an
index for every non-zero. A leaf is stored sparse only where that is smaller. Bytes are
those of the arrays alone; `gradprune_jax.export.storage_report` has those of a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_INDEX = 4  # bytes of a column index or a row's offset, as in SciPy and cuSPARSE


def sizes(leaves: Sequence[np.ndarray]) -> dict[str, int]:
    """Bytes of all leaves in each layout.

    Args:
      leaves: arrays; as a matrix, all axes but the last are its rows.

    Returns:
      The bytes by layout: dense, bit mask, compressed sparse rows.

    Examples:
      >>> sizes([np.diag(np.ones(64, np.float32))])
      {'dense': 16384, 'bitmask': 768, 'csr': 772}
    """
    total = {"dense": 0, "bitmask": 0, "csr": 0}
    for leaf in leaves:
        nonzero = int(np.count_nonzero(leaf))
        rows = leaf.size // max(leaf.shape[-1] if leaf.ndim else 1, 1)
        values = nonzero * leaf.itemsize
        bitmask = values + -(-leaf.size // 8)
        csr = values + nonzero * _INDEX + (rows + 1) * _INDEX
        total["dense"] += leaf.nbytes
        total["bitmask"] += min(leaf.nbytes, bitmask)
        total["csr"] += min(leaf.nbytes, csr)
    return total
