"""Convolutions of ResNets, and the same sums written as products.

Kernels are 3 × 3 with stride 1 in float32. The forward pass and both gradients
are timed as XLA has them; the kernel's gradient also as one product over
patches, as nine products of shifted images, and as one with channels first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scripts.benchmark.measure import Measure, Measures, in_turn

TITLE = 'convolutions of ResNets'
ROUNDS = 'rounds of a convolution of each kind'
Images = Float[Array, 'batch height width channels']
Kernel = Float[Array, '3 3 channels channels']


class Shapes(NamedTuple):
  """Images of a batch, and (pixels a side, channels) of each convolution."""

  images: int
  sizes: tuple[tuple[int, int], ...]


# The last two are of a ResNet-50 on images of 64 × 64.
SMALL = FULL = Shapes(64, ((32, 16), (16, 32), (8, 64), (4, 256), (2, 512)))


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times convolutions in turn.

  Args:
    rounds: how many.
    shapes: of the images.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  for size, channels in shapes.sizes:
    kinds = make_kinds(shapes.images, size, channels)
    for each in in_turn(kinds, rounds):
      for kind, taken in each.items():
        name = f'{channels} channels of {size} × {size}: {kind}'
        found.note(name, 'ms', 1e3 * taken)
      yield found.all()


def make_kinds(
  images: int, size: int, channels: int
) -> dict[str, Callable[[], Array]]:
  """Jitted functions without arguments, by what they compute and how."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (images, size, size, channels))
  kernel = jax.random.normal(keys[1], (3, 3, channels, channels))
  d_y = jax.random.normal(keys[2], x.shape)
  first = jnp.moveaxis(x, -1, 0), jnp.moveaxis(d_y, -1, 0)
  functions = {
    'forward': (_convolve, x, kernel),
    'forward, a product over patches': (_as_product, x, kernel),
    'gradient of the input': (_d_input, x, kernel, d_y),
    'gradient of the kernel': (_d_kernel, x, kernel, d_y),
    'gradient of the kernel, a product over patches': (_patches, x, d_y),
    'gradient of the kernel, nine products': (_nine, x, d_y),
    'gradient of the kernel, channels first': (_channels_first, *first),
  }
  return {
    kind: functools.partial(jax.jit(function), *arguments)
    for kind, (function, *arguments) in functions.items()
  }


def _convolve(x: Images, kernel: Kernel) -> Images:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _d_input(x: Images, kernel: Kernel, d_y: Images) -> Images:
  [d_x] = jax.vjp(lambda x: _convolve(x, kernel), x)[1](d_y)
  return d_x


def _d_kernel(x: Images, kernel: Kernel, d_y: Images) -> Kernel:
  [d_kernel] = jax.vjp(lambda kernel: _convolve(x, kernel), kernel)[1](d_y)
  return d_kernel


def _shifted(x: Images) -> list[Images]:
  """The nine images that a kernel's nine places see."""
  size = x.shape[1]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return [
    x[:, row : row + size, column : column + size]
    for row in range(3)
    for column in range(3)
  ]


def _as_product(x: Images, kernel: Kernel) -> Images:
  return jnp.concatenate(_shifted(x), -1) @ kernel.reshape(-1, kernel.shape[-1])


def _patches(x: Images, d_y: Images) -> Kernel:
  patches = jnp.concatenate(_shifted(x), -1)
  d_kernel = jnp.tensordot(patches, d_y, axes=((0, 1, 2), (0, 1, 2)))
  return d_kernel.reshape(3, 3, x.shape[-1], d_y.shape[-1])


def _nine(x: Images, d_y: Images) -> Kernel:
  products = [
    jnp.tensordot(one, d_y, axes=((0, 1, 2), (0, 1, 2))) for one in _shifted(x)
  ]
  return jnp.stack(products).reshape(3, 3, x.shape[-1], d_y.shape[-1])


def _channels_first(
  x: Float[Array, 'channels batch height width'],
  d_y: Float[Array, 'channels batch height width'],
) -> Kernel:
  channels, images, size, _ = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
  patches = jnp.concatenate(
    [
      x[..., row : row + size, column : column + size]
      for row in range(3)
      for column in range(3)
    ]
  )
  d_kernel = patches.reshape(-1, images * size**2) @ d_y.reshape(channels, -1).T
  return d_kernel.reshape(3, 3, channels, channels)
