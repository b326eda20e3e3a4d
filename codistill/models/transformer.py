"""A small decoder-only Transformer of today's kind, beyond the paper.

Pre-norm with RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al.
2021), GELU, and no biases except the head's. Matrices start like GPT-2's, with
a standard deviation of 0.02, divided by √(2·layers) for those that end a
residual branch (Radford et al. 2019, §2.3). It sees only the tokens of its own
example, so it has no memory.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from codistill.models.model import (
  LinearHead,
  Model,
  Prediction,
  make_feedforward,
)

_STANDARD_DEVIATION = 0.02
# Radians a token for the first and (nearly) the last pair of a head.
_FASTEST, _SLOWEST = 1.0, 1e-4


def rotate(
  x: Float[Array, 'batch time heads size'],
) -> Float[Array, 'batch time heads size']:
  """Turns each pair of a head's numbers by an angle that grows with time.

  The product of a query and a key then depends on their distance.
  """
  time, half = x.shape[1], x.shape[-1] // 2
  rates = _FASTEST * (_SLOWEST / _FASTEST) ** (jnp.arange(half) / half)
  angles = jnp.arange(time)[:, None, None] * rates  # [time, 1, half]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(angles.dtype), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Transformer(nn.Module):
  """Embeddings, blocks of attention and MLP, norm: features; linear head."""

  num_classes: int
  width: int
  num_layers: int
  num_heads: int
  mlp_size: int
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(
    self, inputs: Int[Array, 'batch time'], train: bool
  ) -> Prediction:
    """Predicts each token's successor."""
    batch, time = inputs.shape

    def norm(x, name):
      # In float32, even if the products are not.
      return nn.RMSNorm(
        epsilon=1e-6, dtype=None, param_dtype=self.param_dtype, name=name
      )(x).astype(self.dtype)

    def dense(x, size, name, scale=1.0):
      return nn.Dense(
        size,
        use_bias=False,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        kernel_init=nn.initializers.normal(_STANDARD_DEVIATION * scale),
        name=name,
      )(x)

    embedding = self.param(
      'embedding',
      nn.initializers.normal(_STANDARD_DEVIATION),
      (self.num_classes, self.width),
      self.param_dtype,
    )
    x = jnp.asarray(embedding)[inputs]  # Weights may be arrays of the host.
    last = 1 / math.sqrt(2 * self.num_layers)
    for layer in range(self.num_layers):
      of = f'layer_{layer}_'
      y = dense(norm(x, of + 'attention_norm'), 3 * self.width, of + 'qkv')
      y = y.reshape(batch, time, 3, self.num_heads, -1)
      query, key, value = (y[:, :, part] for part in range(3))
      y = jax.nn.dot_product_attention(
        rotate(query), rotate(key), value, is_causal=True
      )
      y = y.reshape(batch, time, self.width)
      x += dense(y, self.width, of + 'attention', last)
      y = dense(norm(x, of + 'mlp_norm'), self.mlp_size, of + 'mlp')
      x += dense(nn.gelu(y), self.width, of + 'mlp_end', last)
    features = norm(x, 'norm')
    head = LinearHead(
      self.num_classes,
      self.param_dtype,
      nn.initializers.normal(_STANDARD_DEVIATION),
      name='head',
    )
    return Prediction(features, head(features))


def make_transformer(
  *,
  input_shape: tuple[int, ...],
  num_classes: int,
  width: int,
  num_layers: int,
  num_heads: int,
  mlp_size: int,
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the decoder-only Transformer.

  Args:
    input_shape: (tokens,) of an example; other lengths work, too.
    num_classes: size of the vocabulary.
    width: of the residual stream.
    num_layers: number of blocks.
    num_heads: attention heads of width / num_heads numbers each.
    mlp_size: hidden units of a block's MLP; usually 4 · width.
    dtype: of the products and features, e.g. 'bfloat16'.
    param_dtype: of the parameters and the residual stream, e.g. 'float32'.

  Returns:
    The model. Inputs are int [batch, time], features [batch, time, width]; its
    memory is ().

  Raises:
    ValueError: if heads do not divide the width into even parts.
  """
  if num_heads < 1 or width % (2 * num_heads):
    raise ValueError(
      f'width {width} cannot be divided into {num_heads} heads of an even '
      'size; make it a multiple of twice num_heads'
    )
  module = Transformer(
    num_classes,
    width,
    num_layers,
    num_heads,
    mlp_size,
    jnp.dtype(dtype),
    jnp.dtype(param_dtype),
  )
  return make_feedforward(module, input_shape, jnp.int32)
