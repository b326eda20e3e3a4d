"""The recurrent language model of the paper: layer-normalised LSTMs (§3.1).

The paper says "two LSTM layers of 1024 units with layer normalisation", cites
Ba et al. (2016), and no more. Of the variants this is the one of its authors'
library, TensorFlow's LayerNormBasicLSTMCell. It normalises each gate's
pre-activation (the sum of the contributions of input and past) by itself, and
carries on the *normalised* cell, which bounds a state that is never reset. The
only biases are those of the normalisations; the forget gate's pre-activation is
raised by 1.

The paper does not say the rest. Matrices start like TensorFlow's (Glorot and
Bengio 2010, uniform), but embeddings with unit variance, so that at first a
token moves the gates as much as the past does. There is no dropout and no
projection, and embeddings and softmax are not tied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from codistill.models.model import LinearHead, Model, Prediction, matmul

PyTree = Any
# Scale and bias of a normalisation.
Norm = dict[str, Any]
# A layer's state between tokens: the normalised cell, and the output.
Carry = tuple[Float[Array, 'batch hidden'], Float[Array, 'batch hidden']]

_FORGET_BIAS = 1.0
# TensorFlow had 1e-12, too small to matter beside variances in float32.
_EPSILON = 1e-6


def _uniform(limit: float) -> Callable[..., Array]:
  return lambda key, shape, dtype: jax.random.uniform(
    key, shape, dtype, -limit, limit
  )


def _normalise(norm: Norm, x: Array) -> Array:
  x -= x.mean(-1, keepdims=True)
  x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _EPSILON)
  return x * norm['scale'] + norm['bias']


def _activate(
  gate_norm: Norm,
  cell_norm: Norm,
  gates: Float[Array, 'batch gates'],
  cell: Float[Array, 'batch hidden'],
) -> Carry:
  """Returns the cell and the output after a token.

  Args:
    gate_norm: [4·hidden], or [batch, 4·hidden].
    cell_norm: [hidden], or [batch, hidden].
    gates: pre-activations of the input, transform, forget and output gates.
    cell: the cell before the token.
  """

  def by_gate(x):
    return x.reshape(*x.shape[:-1], 4, -1)

  gates = _normalise(jax.tree.map(by_gate, gate_norm), by_gate(gates))
  enter, new, keep, show = (gates[:, gate] for gate in range(4))
  cell = cell * jax.nn.sigmoid(keep + _FORGET_BIAS)
  cell = _normalise(cell_norm, cell + jax.nn.sigmoid(enter) * jnp.tanh(new))
  return cell, jnp.tanh(cell) * jax.nn.sigmoid(show)


def _scan(kernel, gate_norm, cell_norm, projected, carry, dtype, keep):
  """Runs the recurrence; with `keep`, also returns the gradient's residuals."""
  kernel = kernel.astype(dtype)  # Once, not for each token.

  def step(carry, projected):
    cell, output = carry
    gates = projected + matmul(output.astype(dtype), kernel)
    after = _activate(gate_norm, cell_norm, gates, cell)
    return after, (after[1], (gates, cell, output) if keep else ())

  carry, (outputs, kept) = jax.lax.scan(step, carry, projected)
  return (outputs, carry), kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def recur(
  kernel: Float[Array, 'hidden gates'],
  gate_norm: Norm,
  cell_norm: Norm,
  projected: Float[Array, 'time batch gates'],
  carry: Carry,
  dtype: Any,
) -> tuple[Float[Array, 'time batch hidden'], Carry]:
  """Runs an LSTM layer over time on inputs that are already projected.

  It has its own gradient. This computes the kernel's gradient as one product
  after the scan, where JAX's sums one a token, and keeps three arrays a token,
  where JAX's keeps a dozen (docs/performance.md). Several devices then need one
  sum over all of them, not one a token.

  Args:
    kernel: weights of the previous token's output.
    gate_norm: normalisation of the four gates.
    cell_norm: normalisation of the cell.
    projected: contributions of the inputs.
    carry: state before the first token.
    dtype: of the products.

  Returns:
    The outputs, and the carry after the last token.
  """
  return _scan(kernel, gate_norm, cell_norm, projected, carry, dtype, False)[0]


def _recur_forward(kernel, gate_norm, cell_norm, projected, carry, dtype):
  result, kept = _scan(
    kernel, gate_norm, cell_norm, projected, carry, dtype, True
  )
  return result, (kernel, gate_norm, cell_norm, kept)


def _recur_backward(dtype, residuals, cotangents):
  kernel, gate_norm, cell_norm, (gates, cells, before) = residuals
  d_outputs, d_last = cotangents
  # One copy a lane, so that lanes, and devices, are summed once after the scan.
  norms = jax.tree.map(
    lambda x: jnp.broadcast_to(x, (gates.shape[1], *x.shape)),
    (gate_norm, cell_norm),
  )
  cast = kernel.astype(dtype)

  def step(carry, now):
    d_cell, d_output, d_norms = carry
    gates, cell, d_now = now
    _, pull = jax.vjp(_activate, *norms, gates, cell)
    *d_here, d_gates, d_cell = pull((d_cell, d_output + d_now))
    d_norms = jax.tree.map(jnp.add, d_norms, tuple(d_here))
    return (d_cell, matmul(d_gates.astype(dtype), cast.T), d_norms), d_gates

  (d_cell, d_output, d_norms), d_gates = jax.lax.scan(
    step,
    (*d_last, jax.tree.map(jnp.zeros_like, norms)),
    (gates, cells, d_outputs),
    reverse=True,
  )
  d_norms = jax.tree.map(lambda x: x.sum(0), d_norms)
  # Time and lanes stay two axes: joining them would gather lanes that are split
  # over devices on each device.
  d_kernel = jnp.tensordot(
    before.astype(dtype),
    d_gates.astype(dtype),
    axes=((0, 1), (0, 1)),
    preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )
  return d_kernel.astype(kernel.dtype), *d_norms, d_gates, (d_cell, d_output)


recur.defvjp(_recur_forward, _recur_backward)


class _Norm(nn.Module):
  """Scale and bias of a normalisation."""

  size: int
  param_dtype: Any

  @nn.compact
  def __call__(self, dtype: Any) -> Norm:
    return {
      name: self.param(name, init, (self.size,), self.param_dtype).astype(dtype)
      for name, init in (
        ('scale', nn.initializers.ones),
        ('bias', nn.initializers.zeros),
      )
    }


class _Layer(nn.Module):
  """An LSTM layer, over inputs [time, batch, size]."""

  hidden_size: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, inputs: Array, carry: Carry) -> tuple[Array, Carry]:
    size, hidden = inputs.shape[-1], self.hidden_size
    # The two are parts of one matrix in TensorFlow, and are initialised so.
    init = _uniform(math.sqrt(6 / (size + hidden + 4 * hidden)))
    enter, past = (
      self.param(name, init, (rows, 4 * hidden), self.param_dtype)
      for name, rows in (('input_kernel', size), ('kernel', hidden))
    )
    exact = jnp.promote_types(self.dtype, jnp.float32)
    gate_norm = _Norm(4 * hidden, self.param_dtype, name='gate_norm')(exact)
    cell_norm = _Norm(hidden, self.param_dtype, name='cell_norm')(exact)
    # One product for all tokens, outside the recurrence.
    projected = matmul(inputs.astype(self.dtype), enter.astype(self.dtype))
    return recur(past, gate_norm, cell_norm, projected, carry, self.dtype)


class LSTM(nn.Module):
  """Embeddings, LSTM layers: features; linear head."""

  num_classes: int
  embedding_size: int
  hidden_size: int
  num_layers: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self, inputs: Int[Array, 'batch time'], memory: tuple[Carry, ...]
  ) -> tuple[Prediction, tuple[Carry, ...]]:
    """Predicts each token's successor; returns the last carry, too."""
    embedding = self.param(
      'embedding',
      nn.initializers.normal(1.0),
      (self.num_classes, self.embedding_size),
      self.param_dtype,
    )
    # [time, batch, size]; weights may be arrays of the host.
    x = jnp.asarray(embedding)[inputs.T].astype(self.dtype)
    after = []
    for number, carry in enumerate(memory):
      layer = _Layer(
        self.hidden_size, self.dtype, self.param_dtype, name=f'layer_{number}'
      )
      x, carry = layer(x, carry)
      after.append(carry)
    features = x.swapaxes(0, 1).astype(self.dtype)
    head = LinearHead(
      self.num_classes,
      self.param_dtype,
      nn.initializers.glorot_uniform(),
      name='head',
    )
    return Prediction(features, head(features)), tuple(after)


def make_lstm(
  *,
  input_shape: tuple[int, ...],
  num_classes: int,
  embedding_size: int,
  hidden_size: int,
  num_layers: int,
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the LSTM language model.

  Args:
    input_shape: (tokens,) of an example: the unroll; 32 in the paper.
    num_classes: size of the vocabulary; 24,006 in the paper.
    embedding_size: numbers of an embedding; 256 in the paper.
    hidden_size: units of a layer; 1024 in the paper.
    num_layers: 2 in the paper.
    dtype: of products and features, e.g. 'bfloat16'; cells, outputs and
      normalisations are in float32 or better.
    param_dtype: of the parameters, e.g. 'float32'.

  Returns:
    The model. Inputs are int [batch, time], features [batch, time, hidden];
    its memory is (cell, output) of each layer, [batch, hidden].
  """
  carry_dtype = jnp.promote_types(dtype, jnp.float32)
  module = LSTM(
    num_classes,
    embedding_size,
    hidden_size,
    num_layers,
    jnp.dtype(dtype),
    jnp.dtype(param_dtype),
  )

  def memory(batch_size: int) -> tuple[Carry, ...]:
    # Separate arrays, because an update donates each of them.
    return tuple(
      (
        jnp.zeros((batch_size, hidden_size), carry_dtype),
        jnp.zeros((batch_size, hidden_size), carry_dtype),
      )
      for _ in range(num_layers)
    )

  @jax.jit
  def init(key: jax.Array) -> PyTree:
    inputs = jnp.zeros((1, *input_shape), jnp.int32)
    return module.init(key, inputs, memory(1))

  def forward(variables: PyTree, inputs: Array, memory: PyTree, key: jax.Array):
    prediction, memory = module.apply(variables, inputs, memory)
    return prediction, {}, memory

  return Model(init, predict=module.apply, forward=forward, memory=memory)
