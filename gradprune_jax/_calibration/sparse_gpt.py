"""SparseGPT: what the weights that go would have added is given to those to the right.

Weights are pruned column by column, a column being one input of all outputs. The error
that a column leaves is spread over the columns that come after it, as a least-squares
problem on the calibration inputs says. Which weights go is decided for a block of
columns at once, or for each group of N:M, when the errors before it are spread already.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradprune_jax._calibration.method import CalibratedMethod, Target
from gradprune_jax._calibration.selection import largest, largest_of_groups
from gradprune_jax._checks import as_number, check_integer
from gradprune_jax._mask_update import kept_count

_HIGHEST = jax.lax.Precision.HIGHEST
# How often a factorisation is tried, each time with ten times the damping, and the
# damping that follows none.
_ATTEMPTS = 8
_LEAST_DAMPING = 1e-4


@dataclasses.dataclass(frozen=True)
class SparseGPT(CalibratedMethod):
    r"""Prunes by the error on the calibration inputs, which later weights make up for.

    With $H = X^T X$, damped by $\lambda$ times its mean diagonal, and the upper
    Cholesky factor U of $H^{-1} = U^T U$, in each block of columns the weights go of
    the smallest

    $$
    \frac{w_{o, j}^2}{U_{jj}^2}, \qquad
    w_{o, j'} \leftarrow w_{o, j'} - \frac{w_{o, j}}{U_{jj}} U_{jj'} \quad (j' > j)
    $$

    All is computed in float32. Inputs that are always zero go first. Where the
    factorisation fails, it is tried again with ten times the damping.

    Attributes:
      damping: $\lambda$, not negative.
      block_size: the number of columns that are pruned together; for N:M rounded up to
        whole groups.

    Raises:
      ValueError: if an attribute is outside its range.

    Examples:
      >>> import gradprune_jax as gp
      >>> kernel = jnp.array([[1.0], [1.0]])
      >>> inputs = jnp.array([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])  # proportional
      >>> params, _ = gp.prune_calibrated(
      ...     lambda params, x: x @ params["kernel"],
      ...     {"kernel": kernel},
      ...     [inputs],
      ...     0.5,
      ...     method=gp.SparseGPT(damping=1e-6),
      ... )
      >>> print(params["kernel"].round(2))  # x + 2 x = 1.5 (2 x)
      [[0. ]
       [1.5]]

    References:
      Frantar and Alistarh, [SparseGPT](https://arxiv.org/abs/2301.00774), 2023,
      algorithm 1.
    """

    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        damping = as_number(self.damping)
        if damping is None or not 0 <= damping < np.inf:
            raise ValueError(
                f"damping is {self.damping!r}; it must be a finite number, not "
                "negative, such as 0.01."
            )
        object.__setattr__(self, "damping", damping)
        size = check_integer("block_size", self.block_size, minimum=1)
        object.__setattr__(self, "block_size", size)

    def statistic(self, inputs: jax.Array) -> jax.Array:
        """The Gram matrix of the inputs: [groups, inputs, inputs]."""
        return jnp.einsum("gni,gnj->gij", inputs, inputs, precision=_HIGHEST)

    def prune(
        self, weights: jax.Array, statistic: jax.Array, target: Target
    ) -> tuple[jax.Array, jax.Array]:
        """Prunes the columns in order, and spreads their errors."""
        if not weights.size:
            return weights, jnp.ones_like(weights, dtype=bool)
        factor = self._factor(statistic, target.name)
        _, outputs, inputs = weights.shape
        pattern = target.pattern
        width = 1 if pattern is None else pattern.of
        block = -(-min(self.block_size, inputs) // width) * width
        ends = [min(end, inputs) for end in range(block, inputs + block, block)]
        sparsity = np.float32(target.sparsity)
        upto = kept_count([outputs * end for end in ends], sparsity).integers()
        kept = np.diff(upto.astype(np.int64), prepend=0).astype(np.uint32)
        n_of_m = None if pattern is None else (pattern.keep, pattern.of)
        is_dead = jnp.diagonal(statistic, axis1=1, axis2=2) == 0
        narrow = weights.astype(jnp.float32)
        new, mask = _prune(narrow, factor, is_dead, kept, block, n_of_m)
        # What did not change keeps the digits of a wider dtype.
        return jnp.where(new == narrow, weights, new.astype(weights.dtype)), mask

    def _factor(self, gram: jax.Array, name: str) -> jax.Array:
        """The upper Cholesky factor of the inverse: [groups, inputs, inputs]."""
        damping = self.damping
        for _ in range(_ATTEMPTS):
            with jax.debug_nans(False):  # it is looked at right here
                factor = _inverse_factor(gram, damping)
            if bool(jnp.isfinite(factor).all()):
                return factor
            damping = max(10 * damping, _LEAST_DAMPING)
        raise ValueError(
            f"the inputs of {name!r} give a matrix that can't be factorised, also with "
            f"a damping of {damping / 10:g}; look for very large inputs, or leave it "
            "dense by `where`."
        )


@jax.jit
def _inverse_factor(gram: jax.Array, damping: Any) -> jax.Array:
    r"""U of $H^{-1} = U^T U$, without the inverse.

    If $H = R R^T$ with R upper triangular, then U is its inverse. And R is the Cholesky
    factor of H with rows and columns in reverse order.
    """
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    mean = jnp.mean(diagonal, axis=1)[:, None]
    scale = jnp.where(mean > 0, mean, 1)
    # H has the scale of the inputs squared; one of about 1 keeps float32 exact enough.
    own = jnp.where(diagonal == 0, 1, diagonal / scale) + damping
    eye = jnp.eye(gram.shape[1], dtype=gram.dtype)
    scaled = jnp.where(eye > 0, own[:, None, :], gram / scale[:, :, None])
    lower = jax.lax.linalg.cholesky(scaled[:, ::-1, ::-1], symmetrize_input=False)
    upper = lower[:, ::-1, ::-1]
    return jax.lax.linalg.triangular_solve(
        upper, jnp.broadcast_to(eye, upper.shape), left_side=True, lower=False
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _prune(
    weights: jax.Array,
    factor: jax.Array,
    is_dead: jax.Array,
    kept: Any,
    block: int,
    n_of_m: tuple[int, int] | None,
) -> tuple[jax.Array, jax.Array]:
    """Prunes all blocks of columns in order.

    Args:
      weights: float32 [groups, outputs, inputs].
      factor: U, [groups, inputs, inputs].
      is_dead: where an input is always zero, bool [groups, inputs].
      kept: how many weights each block keeps, uint32 [blocks].
      block: the columns of a block.
      n_of_m: N and M; None where a block is pruned unstructured.

    Returns:
      The weights and the mask, [groups, outputs, inputs].
    """
    inputs = weights.shape[-1]
    blocks = len(kept)
    missing = blocks * block - inputs
    columns = jnp.pad(weights.swapaxes(1, 2), ((0, 0), (0, missing), (0, 0)))
    upper = jnp.pad(factor, ((0, 0), (0, missing), (0, missing)))
    width = block if n_of_m is None else n_of_m[1]
    divisors = jnp.diagonal(upper, axis1=1, axis2=2)
    # 0 makes a score of 0; beyond the inputs nothing is selected anyway.
    weighing = jnp.where(divisors > 0, 1 / divisors, 0)
    dead = jnp.pad(is_dead, ((0, 0), (0, missing)))
    ranked_by = jnp.where(dead, 0, weighing)

    def prune_block(number: Any, state: Any) -> Any:
        columns, mask = state
        start = number * block
        own, rows, ranks, inverse = (
            jax.lax.dynamic_slice_in_dim(each, start, block, axis=1)
            for each in (columns, upper, ranked_by, weighing)
        )
        square = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=2)

        def select(first: Any, own: jax.Array) -> jax.Array:
            """Marks what stays of the next columns: [groups, width, outputs]."""
            part = jax.lax.dynamic_slice_in_dim(own, first, width, axis=1)
            rank = jax.lax.dynamic_slice_in_dim(ranks, first, width, axis=1)
            scores = jnp.square(part * rank[:, :, None])
            if n_of_m is not None:
                return largest_of_groups(scores, 1, n_of_m[1], n_of_m[0])
            # Outputs first: of equal scores the first weight of the matrix stays.
            live = (start + jnp.arange(block) < inputs)[None, None, :]
            by_output = scores.swapaxes(1, 2)
            live = jnp.broadcast_to(live, by_output.shape)
            return largest(by_output, kept[number], (0,), live).swapaxes(1, 2)

        def prune_some(turn: Any, state: Any) -> Any:
            own, errors, mask = state
            first = turn * width
            stays = select(first, own)
            mask = jax.lax.dynamic_update_slice_in_dim(mask, stays, first, axis=1)

            def prune_column(column: Any, state: Any) -> Any:
                own, errors = state
                values = own[:, column]
                gone = jnp.where(mask[:, column], 0, values) * inverse[:, column, None]
                own -= square[:, column, :, None] * gone[:, None, :]
                return own, errors.at[:, column].set(gone)

            own, errors = jax.lax.fori_loop(
                first, first + width, prune_column, (own, errors)
            )
            return own, errors, mask

        own, errors, stays = jax.lax.fori_loop(
            0,
            block // width,
            prune_some,
            (own, jnp.zeros_like(own), jnp.zeros_like(own, dtype=bool)),
        )
        own = jnp.where(stays, own, 0)
        later = jnp.arange(columns.shape[1]) >= start + block
        spread = jnp.where(later, rows, 0)
        columns = columns - jnp.einsum(
            "gci,gco->gio", spread, errors, precision=_HIGHEST
        )
        columns = jax.lax.dynamic_update_slice_in_dim(columns, own, start, axis=1)
        mask = jax.lax.dynamic_update_slice_in_dim(mask, stays, start, axis=1)
        return columns, mask

    mask = jnp.zeros_like(columns, dtype=bool)
    columns, mask = jax.lax.fori_loop(0, blocks, prune_block, (columns, mask))
    return (
        columns[:, :inputs].swapaxes(1, 2),
        mask[:, :inputs].swapaxes(1, 2),
    )
