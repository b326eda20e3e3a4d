"""Batch normalisation over groups of a batch, as in Goyal et al. (2017).

Under `jit` a batch that is split over devices is one batch, and BatchNorm takes
its statistics over all of it. Goyal et al. (§2.3) take them over each worker's
32 images, for any number of workers. The regularisation differs, and a group on
one device needs no communication.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

EPSILON = 1e-5


class BatchNorm(nn.Module):
  """BatchNorm (Ioffe & Szegedy, 2015) for each group of examples by itself.

  Its name, parameters and statistics are those of `flax.linen.BatchNorm`, so
  either can use the other's weights. The running statistics follow the mean of
  the groups' means and variances.

  Attributes:
    group_size: number of neighbouring examples that are normalised together; it
      divides the batch size.
    use_running_average: normalise with the running statistics, as evaluation
      does, and leave them unchanged.
    momentum: of the running statistics: new = m · old + (1 − m) · batch.
    dtype: of the result; statistics are taken in float32 or better.
    param_dtype: of parameters and statistics.
    scale_init: initializer of γ.
  """

  group_size: int
  use_running_average: bool
  momentum: float
  dtype: Any
  param_dtype: Any
  scale_init: Callable[..., Array] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises each channel of [batch, …, channels] by itself.

    Raises:
      ValueError: if the group size does not divide the batch.
    """
    shape = (x.shape[-1],)
    exact = jnp.promote_types(self.dtype, jnp.float32)
    scale = self.param('scale', self.scale_init, shape, self.param_dtype)
    bias = self.param('bias', nn.initializers.zeros, shape, self.param_dtype)
    running = [
      self.variable('batch_stats', name, start, shape, jnp.float32)
      for name, start in (('mean', jnp.zeros), ('var', jnp.ones))
    ]
    y = x.astype(exact)
    if self.use_running_average:
      mean, var = (one.value for one in running)
    else:
      if len(x) % self.group_size:
        raise ValueError(
          f'{len(x)} examples cannot be divided into BatchNorm groups of '
          f'{self.group_size}; change the batch size or the group size'
        )
      y = y.reshape(-1, self.group_size, *x.shape[1:])
      axes = tuple(range(1, y.ndim - 1))
      mean = y.mean(axes, keepdims=True)
      var = jnp.square(y - mean).mean(axes, keepdims=True)
      for one, found in zip(running, (mean, var), strict=True):
        found = found.reshape(-1, *shape).mean(0)
        one.value = self.momentum * one.value + (1 - self.momentum) * found
    y = (y - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias
    return y.reshape(x.shape).astype(self.dtype)
