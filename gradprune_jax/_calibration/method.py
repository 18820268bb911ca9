"""What a method is: what it sums of the inputs, and what it makes of the weights."""

from __future__ import annotations

from typing import NamedTuple

import jax

from gradprune_jax._structures import NM


class Target(NamedTuple):
    """How sparse one weight matrix becomes.

    Attributes:
      name: the path of the parameter.
      sparsity: the fraction of zeros, in [0, 1].
      pattern: N:M along the inputs; None for unstructured sparsity.
      axis: of the parameter, along which groups of N:M lie.
    """

    name: str
    sparsity: float
    pattern: NM | None
    axis: int | None = None


class CalibratedMethod:
    """What all methods that prune with inputs have in common.

    A method sees a matrix as [groups, outputs, inputs] in float32 or wider, whatever
    the parameter's own axes are. Groups are experts, or those of a convolution; most
    layers have one. The inputs of a convolution are its patches.

    Examples:
      Magnitude pruning of each output, which reads no inputs.

      >>> import jax.numpy as jnp, gradprune_jax as gp
      >>> class PerOutput(gp.CalibratedMethod):
      ...     def statistic(self, inputs):
      ...         return jnp.zeros(())
      ...
      ...     def prune(self, weights, statistic, target):
      ...         kept, mask = gp.prune(weights, target.sparsity, stack_axis=1)
      ...         return kept, mask
    """

    def statistic(self, inputs: jax.Array) -> jax.Array:
        """What is known of inputs; summed over batches.

        Args:
          inputs: float32 [groups, samples, inputs]; called under `jit`.

        Returns:
          An array whose shape does not depend on the samples.
        """
        raise NotImplementedError

    def prune(
        self, weights: jax.Array, statistic: jax.Array, target: Target
    ) -> tuple[jax.Array, jax.Array]:
        """Prunes one matrix.

        Args:
          weights: float32 or wider [groups, outputs, inputs].
          statistic: the sum of what `statistic` returned.
          target: how sparse it becomes: its `name`, `sparsity` and `pattern`, which is
            `NM` along the inputs, or None.

        Returns:
          The new weights, and bool of their shape, True where a weight is kept.
        """
        raise NotImplementedError
