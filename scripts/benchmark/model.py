"""How fast updates are, relative to this machine's best matrix products.

Each network's burn-in update, and its codistilling update with one teacher, are
timed on random examples on the device, in turn with products of two square
matrices in the network's precision. A share is the FLOP/s of an update's
products and convolutions, as `scripts/flops.py` counts them, relative to those
of the plain products; its limit is 100 %.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scripts import cost
from scripts.benchmark import networks
from scripts.benchmark.measure import Measure, Measures, in_turn
from scripts.benchmark.networks import Network

TITLE = 'updates beside products'
ROUNDS = 'rounds of products and both updates'
_UPDATES = {'burn-in': 0, 'codistilling': 1}


class Shapes(NamedTuple):
  """Networks by name, and the size of the square matrices."""

  networks: Mapping[str, Network]
  size: int


SMALL = Shapes(networks.SMALL, 1_024)
FULL = Shapes(networks.FULL, 8_192)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times products and updates in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: of networks and matrices.

  Yields:
    All measurements so far, after each round.
  """
  found, size = Measures(), shapes.size
  experiments = {name: one.build() for name, one in shapes.networks.items()}
  dtypes = {name: one.dtype for name, one in shapes.networks.items()}
  functions = {}
  for dtype in dict.fromkeys(dtypes.values()):
    matrix = jnp.ones((size, size), dtype)
    functions[dtype] = functools.partial(jax.jit(jnp.matmul), matrix, matrix)
  counted = {}
  for name, experiment in experiments.items():
    updates = networks.make_updates(experiment, _UPDATES.values())
    for update, teachers in _UPDATES.items():
      functions[name, update] = updates[teachers]
      flops = cost.update_flops(experiment, teachers).products
      counted[name, update] = (flops, experiment)
  for seconds in in_turn(functions, rounds):
    best = {dtype: 2 * size**3 / seconds[dtype] for dtype in dtypes.values()}
    for dtype, rate in best.items():
      found.note(f'a product of {size:,}², {dtype}', 'GFLOP/s', rate / 1e9)
    for (name, update), (flops, experiment) in counted.items():
      each, label = seconds[name, update], f'{name}, {update}'
      rate = experiment.examples_per_step / each
      found.note(f'{label}: rate', f'{experiment.unit}/s', rate)
      found.note(f'{label}: products', 'GFLOP/s', flops / each / 1e9)
      share = 100 * flops / each / best[dtypes[name]]
      found.note(f'{label}: share of the product’s rate', '%', share)
    yield found.all()
