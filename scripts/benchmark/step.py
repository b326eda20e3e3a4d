"""How fast updates are, beside what this machine multiplies at best.

A member of `lm_codistill` with a quarter of the paper's widths and vocabulary,
on 64 lanes of random tokens, in float32: in turn products of two square
matrices, burn-in updates, and codistilling ones with one peer. A share is the
FLOPs of an update's products, as `scripts/flops.py` counts them, beside those
of the plain products in the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from codistill import precision, sharding
from codistill.algorithm import Peer
from codistill.train_step import place_state
from experiments.build import Experiment
from scripts import cost
from scripts.benchmark.measure import Measure, Measures

TITLE = 'an update of a language model'
ROUNDS = 'rounds of products and both updates'
CONFIG = 'lm_codistill'
CHANGES = {
  'batch_size': 64,
  'data.vocab_size': 6_000,
  'model.dtype': 'float32',
  'model.lstm.embedding_size': 64,
  'model.lstm.hidden_size': 256,
}
# Of the square matrices; and how often each is done in a round.
SIZE, PRODUCTS, UPDATES = 1_024, 20, 2


def measure(rounds: int) -> Iterator[list[Measure]]:
  """Times products and updates in turn.

  Args:
    rounds: of each; one more goes before, compiles and is not counted.

  Yields:
    After each round all that has been measured.
  """
  experiment = cost.make_experiment(CONFIG, 1, **CHANGES)
  counted = {
    'burn-in': cost.update_flops(experiment, 0).products,
    'codistilling': cost.update_flops(experiment, 1).products,
  }
  matrix = jnp.ones((SIZE, SIZE), experiment.config.model.dtype)
  multiply = jax.jit(jnp.matmul)
  updates = _make_updates(experiment)
  found = Measures()
  for number in range(rounds + 1):
    best = (
      PRODUCTS
      * 2
      * SIZE**3
      / _seconds(lambda: multiply(matrix, matrix), PRODUCTS)
    )
    seconds = {
      kind: _seconds(update, UPDATES) / UPDATES
      for kind, update in updates.items()
    }
    if not number:
      continue
    found.note(f'a product of {SIZE:,}²', 'GFLOP/s', best / 1e9)
    for kind, each in seconds.items():
      found.note(
        f'{kind}: rate', 'tokens/s', experiment.examples_per_step / each
      )
      share = counted[kind] / each / best
      found.note(f'{kind}: share of the product’s rate', '%', 100 * share)
    found.note(
      'codistilling beside burn-in, time',
      '%',
      100 * seconds['codistilling'] / seconds['burn-in'],
    )
    yield found.all()
  found.note(
    'codistilling beside burn-in, FLOPs',
    '%',
    100 * counted['codistilling'] / counted['burn-in'],
  )
  yield found.all()


def _seconds(function: Callable[[], object], times: int) -> float:
  began = time.perf_counter()
  results = [function() for _ in range(times)]
  jax.block_until_ready(results[-1])
  return time.perf_counter() - began


def _make_updates(experiment: Experiment) -> dict[str, Callable[[], object]]:
  """Both updates, each a function of nothing: the state goes on in here."""
  rng = np.random.default_rng(0)
  words = experiment.config.data.vocab_size
  batch = sharding.split_batch(
    {
      name: rng.integers(words, size=shape.shape, dtype=np.int32)
      for name, shape in cost.abstract_arguments(experiment, 0).batch.items()
    },
    experiment.mesh,
  )
  state = place_state(experiment.init(0), experiment.mesh)
  weights = precision.encode(
    place_state(experiment.init(1), experiment.mesh).variables,
    experiment.teacher_precision,
  )

  def burn_in():
    nonlocal state
    state, metrics = experiment.updates.burn_in(state, batch)
    return metrics

  def codistill():
    nonlocal state
    state, metrics = experiment.updates.codistill(
      state, batch, (Peer(1, 0, weights),)
    )
    return metrics

  return {'burn-in': burn_in, 'codistilling': codistill}
