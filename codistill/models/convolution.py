"""Convolutions of images, some of which are matrix products on CPUs.

XLA's convolutions for CPUs are slow where they are products in disguise: with
1 × 1 kernels, and with hundreds of channels of few pixels (`python -m
scripts.benchmark convolution`, docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codistill.models.model import matmul

Images = Float[Array, 'batch height width channels']
Kernel = Float[Array, 'rows columns channels features']
Features = Float[Array, 'batch height_out width_out features']
Padding = str | Sequence[tuple[int, int]]
# Up to so many output pixels, or from so many channels on, a product is faster.
_FEW_PIXELS = 16
_MANY_CHANNELS = 256
_plain = jax.make_user_context(False)


def plain_convolutions() -> AbstractContextManager[None]:
  """Within it, what is traced has XLA's convolutions alone.

  That is for what is counted, or computed on other machines.
  """
  return _plain(True)


def convolve(
  images: Images,
  kernel: Kernel,
  window_strides: Sequence[int],
  padding: Padding,
  **options: Any,
) -> Features:
  """As `jax.lax.conv_general_dilated`, for `flax.linen.Conv` to call.

  Args:
    images: what is convolved.
    kernel: the weights.
    window_strides: of rows and columns.
    padding: 'SAME', or zeros before and after rows and columns.
    **options: as `flax.linen.Conv` passes them without dilation or groups.
  """
  pixels = images.shape[1] * images.shape[2]
  strides = window_strides[0] * window_strides[1]
  pays = (
    kernel.shape[:2] == (1, 1)
    or pixels <= _FEW_PIXELS * strides
    or min(kernel.shape[2:]) >= _MANY_CHANNELS
  )
  if pays and not _plain.value and jax.default_backend() == 'cpu':
    return convolve_by_product(images, kernel, window_strides, padding)
  return jax.lax.conv_general_dilated(
    images, kernel, window_strides, padding, **options
  )


def convolve_by_product(
  images: Images,
  kernel: Kernel,
  window_strides: Sequence[int],
  padding: Padding,
) -> Features:
  """The convolution as one product of copied patches with the kernel."""
  rows, columns, channels, _ = kernel.shape
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(
      images.shape[1:3], (rows, columns), window_strides, padding
    )
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  # Places where the kernel fits, at stride 1.
  height, width = images.shape[1] - rows + 1, images.shape[2] - columns + 1
  patches = [
    images[
      :,
      row : row + height : window_strides[0],
      column : column + width : window_strides[1],
    ]
    for row in range(rows)
    for column in range(columns)
  ]
  shape = patches[0].shape[:-1]
  # Examples are the first axis, so that joining it with the others leaves each
  # device its own.
  joined = jnp.concatenate(patches, -1).reshape(-1, rows * columns * channels)
  features = matmul(joined, kernel.reshape(joined.shape[-1], -1))
  return features.astype(images.dtype).reshape(*shape, -1)
