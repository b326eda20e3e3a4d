"""The gradient of an LSTM layer's recurrence: our own beside JAX's.

A layer of 1,024 units reads 32 lanes of 32 tokens in float32; gradients of each
kind are timed in turn. Memory is the most that each needs while it runs, by the
compiler's analysis.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from codistill.models import lstm
from scripts.benchmark.measure import Measure, Measures, in_turn

TITLE = 'Gradient of an LSTM layer, 1,024 units × 32 lanes × 32 tokens'
ROUNDS = 'rounds of a gradient of each kind'


class Shapes(NamedTuple):
  """Sizes of a layer and its batch."""

  units: int
  lanes: int
  tokens: int


SMALL = FULL = Shapes(units=1_024, lanes=32, tokens=32)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times gradients in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: of the layer.

  Yields:
    All measurements so far, after each round.
  """
  units, lanes, tokens = shapes
  keys = jax.random.split(jax.random.key(0), 2)
  kernel = jax.random.normal(keys[0], (units, 4 * units)) / units**0.5
  projected = jax.random.normal(keys[1], (tokens, lanes, 4 * units))
  norms = [
    {'scale': jnp.ones(size), 'bias': jnp.zeros(size)}
    for size in (4 * units, units)
  ]
  carry = (jnp.zeros((lanes, units)), jnp.zeros((lanes, units)))

  def gradient_of(recur):
    def loss(kernel, norms, projected):
      outputs, _ = recur(kernel, *norms, projected, carry, jnp.float32)
      return jnp.square(outputs).mean()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

  kinds = {
    'its own': gradient_of(lstm.recur),
    'JAX’s': gradient_of(lstm.recur.__wrapped__),
  }
  found = Measures()
  arguments = kernel, norms, projected
  calls = {
    kind: functools.partial(of, *arguments) for kind, of in kinds.items()
  }
  for seconds in in_turn(calls, rounds):
    for kind, each in seconds.items():
      found.note(f'time, {kind}', 'ms', 1e3 * each)
    own, theirs = seconds.values()
    found.note('time, its own beside JAX’s', '%', 100 * own / theirs)
    yield found.all()
  for kind, gradient in kinds.items():
    compiled = gradient.lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    if analysis is not None:
      temporary = analysis.temp_size_in_bytes
      found.note(f'memory, {kind}', 'MB', temporary / 1e6)
  yield found.all()
