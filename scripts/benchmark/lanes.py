"""The paper's language model: tokens a second, by lanes and chunks of the loss.

The burn-in update and the update with one teacher, with `loss_chunk_tokens` as
by default and others, are timed in turn on random examples on the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from scripts.benchmark import networks
from scripts.benchmark.measure import Measure, Measures, in_turn
from scripts.benchmark.networks import Network

TITLE = 'the language model by lanes'
ROUNDS = 'rounds of every update'
_UPDATES = {0: 'burn-in', 1: 'one teacher'}


class Shapes(NamedTuple):
  """A network, its batches, and its chunks: a number of tokens, or None."""

  network: Network
  lanes: Sequence[int]
  chunks: Sequence[int | None]


SMALL = Shapes(networks.SMALL['LSTM'], (64, 128), (None, 256))
FULL = Shapes(networks.FULL['LSTM'], (128, 2_048), (None, 256))


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times updates in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: of the network.

  Yields:
    All measurements so far, after each round.
  """
  found, updates, tokens = Measures(), {}, {}
  for lanes, chunk in itertools.product(shapes.lanes, shapes.chunks):
    changes = {'batch_size': lanes, 'model.loss_chunk_tokens': chunk}
    experiment = shapes.network.build(**changes)
    loss = 'loss as by default' if chunk is None else f'chunks of {chunk}'
    for number, update in networks.make_updates(experiment, _UPDATES).items():
      label = f'{lanes:,} lanes, {loss}, {_UPDATES[number]}'
      updates[label], tokens[label] = update, experiment.examples_per_step
  for seconds in in_turn(updates, rounds):
    for label, each in seconds.items():
      found.note(f'{label}: time', 'ms', 1e3 * each)
      found.note(f'{label}: rate', 'k tokens/s', tokens[label] / each / 1e3)
    yield found.all()
