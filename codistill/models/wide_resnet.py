"""Wide residual networks (Zagoruyko & Komodakis, 2016), for small images.

WRN-d-k has three stages of (d − 4)/6 blocks, 16k, 32k and 64k channels wide.
Normalisation and ReLU come before each 3×3 convolution, not after it. There is
no dropout. The paper quotes a WRN-28-10 as the teacher of offline distillation
on CIFAR-100 (§3.4.1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from codistill.models.batch_norm import EPSILON
from codistill.models.convolution import convolve
from codistill.models.model import (
  LinearHead,
  Model,
  Prediction,
  make_feedforward,
)
from codistill.models.relu import relu

# He et al. (2015): normal with variance 2 / fan-out.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
_STAGES = 3


class _Block(nn.Module):
  """Two 3×3 convolutions, each after its normalisation and ReLU."""

  width: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    stride = (self.stride, self.stride)
    y = relu(self.norm()(x))
    # A projection gets the block's normalised input, an identity the raw one.
    if x.shape[-1] != self.width:
      x = self.conv(self.width, (1, 1), stride, name='shortcut')(y)
    y = self.conv(self.width, (3, 3), stride, padding=1)(y)
    y = relu(self.norm()(y))
    return x + self.conv(self.width, (3, 3), padding=1)(y)


class WideResNet(nn.Module):
  """Stem, three stages, global mean: features; linear head."""

  blocks: int
  widening: int
  num_classes: int
  batch_norm_momentum: float
  dtype: Any
  param_dtype: Any

  @nn.compact
  def __call__(self, inputs: Array, train: bool) -> Prediction:
    """Predicts from images of shape [batch, height, width, channels]."""
    conv = functools.partial(
      nn.Conv,
      conv_general_dilated=convolve,
      use_bias=False,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      kernel_init=_KERNEL_INIT,
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.batch_norm_momentum,
      epsilon=EPSILON,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    x = conv(16, (3, 3), padding=1, name='stem')(inputs.astype(self.dtype))
    for stage in range(_STAGES):
      width = 16 * self.widening * 2**stage
      for block in range(self.blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        x = _Block(width, stride, conv, norm)(x)
    features = relu(norm(name='last_norm')(x)).mean((1, 2))
    head = LinearHead(
      self.num_classes,
      self.param_dtype,
      nn.initializers.normal(0.01),
      name='head',
    )
    return Prediction(features, head(features))


def make_wide_resnet(
  *,
  input_shape: tuple[int, int, int],
  num_classes: int,
  depth: int,
  widening: int,
  batch_norm_momentum: float,
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the wide residual network WRN-depth-widening.

  Args:
    input_shape: (height, width, channels) of an image.
    num_classes: number of logits.
    depth: 6n + 4; 28 in the paper's quotation.
    widening: k; 10 there.
    batch_norm_momentum: of the running statistics: new = m·old + (1−m)·batch.
    dtype: of the computation, e.g. 'bfloat16'.
    param_dtype: of parameters and statistics, e.g. 'float32'.

  Returns:
    The model. BatchNorm is over a member's whole batch.

  Raises:
    ValueError: if there is no network of that depth.
  """
  if depth < 10 or depth % 6 != 4:
    raise ValueError(f'no wide ResNet of depth {depth}: depths are 6n + 4')
  module = WideResNet(
    (depth - 4) // 6,
    widening,
    num_classes,
    batch_norm_momentum,
    jnp.dtype(dtype),
    jnp.dtype(param_dtype),
  )
  return make_feedforward(module, input_shape)
