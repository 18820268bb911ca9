"""An LSTM layer that is trained with few large products, and one small one a word.

`nn.RNN` does all of a step's products word by word, and adds a word's part to the
gradient of the kernels, all of which are read and written again for each word: most of
the time of a training step on a GPU. Here only the product with the last output is in
the loop, since it alone needs what the loop has just computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Carry = tuple[jax.Array, jax.Array]  # the cell and the output of all streams

_GATES = "ifgo"  # input, forget, candidate, output: Flax's names


def layer(params: Any, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
    r"""Runs an LSTM layer over time.

    $$ c_t = f_t c_{t-1} + i_t g_t, \quad h_t = o_t \tanh(c_t) $$

    where the gates are of $x_t W + h_{t-1} R + b$, by a sigmoid or, for $g_t$, tanh.

    Args:
      params: of a `flax.linen.OptimizedLSTMCell`.
      carry: $c_0$ and $h_0$, each (streams, units).
      inputs: $x$, (time, streams, features).

    Returns:
      The last carry, and the outputs $h$, (time, streams, units).
    """
    kernel, recurrent = (
        jnp.concatenate([params[side + gate]["kernel"] for gate in _GATES], axis=1)
        for side in "ih"
    )
    bias = jnp.concatenate([params["h" + gate]["bias"] for gate in _GATES])
    return _recurrence(carry, inputs @ kernel + bias, recurrent)


def _cell(gates: jax.Array, cell: jax.Array) -> Carry:
    """The next cell and output, from the sums that the gates are functions of."""
    i, f, g, o = jnp.split(gates, len(_GATES), axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return cell, jax.nn.sigmoid(o) * jnp.tanh(cell)


@jax.custom_vjp
def _recurrence(
    carry: Carry, inputs: jax.Array, kernel: jax.Array
) -> tuple[Carry, jax.Array]:
    """The loop over time, from the inputs' part of the gates' sums."""
    return _forward(carry, inputs, kernel)[0]


def _forward(
    carry: Carry, inputs: jax.Array, kernel: jax.Array
) -> tuple[tuple[Carry, jax.Array], Any]:
    """The results, and for the gradient what each word's cell was given."""

    def read(carry: Carry, inputs: jax.Array) -> tuple[Carry, Any]:
        cell, output = carry
        gates = inputs + output @ kernel
        new = _cell(gates, cell)
        return new, (new[1], gates, carry)

    last, (outputs, *given) = jax.lax.scan(read, carry, inputs)
    return (last, outputs), (given, kernel)


def _backward(saved: Any, cotangents: Any) -> tuple[Carry, jax.Array, jax.Array]:
    """The gradients of the carry, the inputs' part, and the kernel."""
    (gates, (cells, outputs)), kernel = saved
    of_last, of_outputs = cotangents

    def read_back(of_carry: Carry, word: Any) -> tuple[Carry, jax.Array]:
        gates, cell, of_output = word
        of_cell, of_later = of_carry
        _, pull_back = jax.vjp(_cell, gates, cell)
        of_gates, of_cell = pull_back((of_cell, of_later + of_output))
        return (of_cell, of_gates @ kernel.T), of_gates

    of_first, of_gates = jax.lax.scan(
        read_back, of_last, (gates, cells, of_outputs), reverse=True
    )
    # One product for all words, in place of a sum that the loop carries.
    of_kernel = jnp.einsum("tsu,tsg->ug", outputs, of_gates)
    return of_first, of_gates, of_kernel


_recurrence.defvjp(_forward, _backward)
