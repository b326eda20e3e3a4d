"""Residual networks: ResNet-50 as in Goyal et al. (2017), and small ones.

ImageNet depths (18, 34, 50, 101, 152) start with a 7×7 convolution and a
max-pool, and put a block's stride in its 3×3 convolution, like the code of
Goyal et al. Depths 6n + 2 (8, 14, 20, 32, 44, 56, 110) are the CIFAR networks
of He et al. (2016, §4.2), with projection shortcuts.

In both, the last γ of each residual block starts at zero, so that a block
starts as the identity (Goyal et al., §5.1). BatchNorm normalises over groups of
images, each worker's 32 in Goyal et al., or over a member's *global* batch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from codistill.models.batch_norm import EPSILON, BatchNorm
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


class _Block(nn.Module):
  """A residual block; `kernels` and `widths` list its convolutions."""

  kernels: Sequence[int]
  widths: Sequence[int]
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Array) -> Array:
    residual = y = x
    # The first 3×3 convolution takes the stride.
    strided = list(self.kernels).index(3)
    last = len(self.kernels) - 1
    for i, (kernel, width) in enumerate(
      zip(self.kernels, self.widths, strict=True)
    ):
      stride = self.stride if i == strided else 1
      # The same padding on both sides: SAME would shift a strided kernel.
      padding = kernel // 2
      y = self.conv(width, (kernel, kernel), (stride, stride), padding=padding)(
        y
      )
      zero = nn.initializers.zeros
      y = self.norm(scale_init=zero)(y) if i == last else self.norm()(y)
      y = relu(y) if i < last else y
    if residual.shape != y.shape:
      stride = (self.stride, self.stride)
      residual = self.conv(self.widths[-1], (1, 1), stride, name='shortcut')(x)
      residual = self.norm(name='shortcut_norm')(residual)
    return relu(residual + y)


class ResNet(nn.Module):
  """Stem, stages of residual blocks, global mean: features; linear head.

  Attributes:
    stage_sizes: blocks of each stage; each stage but the first halves the
      image.
    bottleneck: use 1×1, 3×3, 1×1 blocks, four times as wide at their end.
    width: channels of the first stage; each stage doubles them.
    small_images: use a 3×3 stem without a max-pool.
    batch_norm_group_size: images that BatchNorm normalises together; None for
      the whole batch.
    remat: recompute blocks for the gradient instead of keeping them.
  """

  stage_sizes: Sequence[int]
  bottleneck: bool
  width: int
  small_images: bool
  num_classes: int
  batch_norm_momentum: float
  batch_norm_group_size: int | None
  remat: bool
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
    size = self.batch_norm_group_size
    norm = functools.partial(
      functools.partial(BatchNorm, group_size=size)
      if size
      else functools.partial(nn.BatchNorm, epsilon=EPSILON),
      use_running_average=not train,
      momentum=self.batch_norm_momentum,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    # Blocks are named, because a wrapped class would rename its parameters.
    make_block = nn.remat(_Block) if self.remat else _Block
    number = itertools.count()
    x = inputs.astype(self.dtype)
    if self.small_images:
      x = relu(norm(name='stem_norm')(conv(self.width, (3, 3), name='stem')(x)))
    else:
      x = conv(self.width, (7, 7), (2, 2), padding=3, name='stem')(x)
      x = relu(norm(name='stem_norm')(x))
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, num_blocks in enumerate(self.stage_sizes):
      width = self.width * 2**stage
      kernels, widths = (
        ((1, 3, 1), (width, width, 4 * width))
        if self.bottleneck
        else ((3, 3), (width, width))
      )
      for block in range(num_blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        name = f'_Block_{next(number)}'
        x = make_block(kernels, widths, stride, conv, norm, name=name)(x)
    features = x.mean((1, 2))
    head = LinearHead(
      self.num_classes,
      self.param_dtype,
      nn.initializers.normal(0.01),
      name='head',
    )
    return Prediction(features, head(features))


_IMAGENET_STAGES = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}


def make_resnet(
  *,
  input_shape: tuple[int, int, int],
  num_classes: int,
  depth: int,
  width: int,
  batch_norm_momentum: float,
  batch_norm_group_size: int | None,
  teacher_batch_norm: str,
  remat: bool,
  dtype: str,
  param_dtype: str,
) -> Model:
  """Makes the residual network of a given depth.

  Args:
    input_shape: (height, width, channels) of an image.
    num_classes: number of logits.
    depth: 18, 34, 50, 101 or 152 for large images; 6n + 2 for small ones.
    width: channels of the first stage; 64 for ImageNet, 16 for CIFAR.
    batch_norm_momentum: of the running statistics: new = m·old + (1−m)·batch.
    batch_norm_group_size: images that BatchNorm normalises together; it divides
      the batch; 32 in Goyal et al. None for the member's whole batch.
    teacher_batch_norm: statistics that a teacher normalises with: 'running',
      its running ones, as at evaluation; 'batch', those of the student's batch.
    remat: recompute blocks for the gradient instead of keeping them: a third
      more computing, less memory.
    dtype: of the computation, e.g. 'bfloat16'.
    param_dtype: of parameters and statistics, e.g. 'float32'.

  Returns:
    The model.

  Raises:
    ValueError: if there is no network of that depth, or no such statistics.
  """
  if depth in _IMAGENET_STAGES:
    stage_sizes, bottleneck = _IMAGENET_STAGES[depth]
    small_images = False
  elif depth >= 8 and depth % 6 == 2:
    stage_sizes, bottleneck = (((depth - 2) // 6,) * 3, False)
    small_images = True
  else:
    raise ValueError(
      f'no ResNet of depth {depth}: depths are '
      f'{", ".join(map(str, _IMAGENET_STAGES))}, or 6n + 2 for small images'
    )
  if teacher_batch_norm not in ('running', 'batch'):
    raise ValueError(
      f'no teacher_batch_norm {teacher_batch_norm!r}; there are running, batch'
    )
  module = ResNet(
    stage_sizes,
    bottleneck,
    width,
    small_images,
    num_classes,
    batch_norm_momentum,
    batch_norm_group_size,
    remat,
    jnp.dtype(dtype),
    jnp.dtype(param_dtype),
  )
  model = make_feedforward(module, input_shape)
  if teacher_batch_norm == 'running':
    return model

  def teach(variables: Any, inputs: Array, memory: Any):
    prediction, _ = module.apply(
      variables, inputs, train=True, mutable=['batch_stats']
    )
    return prediction, memory

  return dataclasses.replace(model, teach=teach)
