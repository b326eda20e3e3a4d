"""Convolutions of ResNets, by XLA and as one product over patches.

The forward pass and both gradients together, with stride 1 in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jaxtyping import Array

from codistill.models.convolution import convolve_by_product
from scripts.benchmark.measure import Measure, Measures, in_turn

TITLE = 'convolutions of ResNets'
ROUNDS = 'rounds of a convolution of each kind'


class Convolution(NamedTuple):
  """Pixels and kernel a side, and channels of input and output."""

  size: int
  kernel: int
  channels: int
  features: int


class Shapes(NamedTuple):
  """Images of a batch, and what is done with them."""

  images: int
  convolutions: tuple[Convolution, ...]


# Of a ResNet-32 on images of 32 × 32, and a ResNet-50 on images of 64 × 64.
SMALL = FULL = Shapes(
  64,
  (
    Convolution(32, 3, 16, 16),
    Convolution(16, 3, 32, 32),
    Convolution(8, 3, 64, 64),
    Convolution(4, 3, 256, 256),
    Convolution(2, 3, 512, 512),
    Convolution(16, 1, 256, 64),
    Convolution(4, 1, 256, 1_024),
  ),
)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times convolutions in turn.

  Args:
    rounds: how many.
    shapes: of the images.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  for one in shapes.convolutions:
    name = '{0} × {0} pixels, {1} × {1} kernel, {2} to {3} channels'.format(
      *one
    )
    for each in in_turn(make_kinds(shapes.images, one), rounds):
      for kind, taken in each.items():
        found.note(f'{name}: {kind}', 'ms', 1e3 * taken)
      yield found.all()


def make_kinds(
  images: int, one: Convolution
) -> dict[str, Callable[[], tuple[Array, ...]]]:
  """Jitted functions without arguments: output and gradients, by how."""
  keys = jax.random.split(jax.random.key(0), 3)
  square = (images, one.size, one.size)
  x = jax.random.normal(keys[0], (*square, one.channels))
  sides = (one.kernel, one.kernel)
  kernel = jax.random.normal(keys[1], (*sides, one.channels, one.features))
  d_y = jax.random.normal(keys[2], (*square, one.features))

  def all_of(convolve, x, kernel, d_y):
    y, pullback = jax.vjp(
      lambda x, kernel: convolve(x, kernel, (1, 1), 'SAME'), x, kernel
    )
    return y, *pullback(d_y)

  by_xla = functools.partial(
    jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  kinds = {'XLA’s': by_xla, 'a product': convolve_by_product}
  return {
    kind: functools.partial(
      jax.jit(functools.partial(all_of, convolve)), x, kernel, d_y
    )
    for kind, convolve in kinds.items()
  }
