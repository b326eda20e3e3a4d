"""What members need of a device's memory, by the compiler's analysis.

Nothing is run. One member: all of its burn-in update. Two, in one process: the
codistilling update with one teacher, and the other member's state and the copy
of the first that it learns from; the limit is two members without teachers. Of
text besides with the loss a chunk of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from codistill import precision
from experiments.experiment import Experiment
from scripts import cost
from scripts.benchmark import networks
from scripts.benchmark.measure import Limit, Measure, Measures
from scripts.benchmark.networks import Network

TITLE = 'memory'
ROUNDS = 'rounds'


class Shapes(NamedTuple):
  """Of networks by name; and of a chunk, in tokens."""

  networks: Mapping[str, Network]
  chunk_tokens: int


SMALL = Shapes(networks.SMALL, 256)
FULL = Shapes(networks.FULL, 256)
_CHUNKS = 'model.loss_chunk_tokens'


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Compiles updates.

  Args:
    rounds: of no use: a second analysis would say the same.
    shapes: of networks and chunks.

  Yields:
    After each network all that is known.
  """
  found = Measures()
  for name, network in shapes.networks.items():
    experiment = network.build()
    kinds = {'': {}}
    if experiment.unit == 'tokens':
      chunks = shapes.chunk_tokens
      kinds = {
        ', plain loss': {_CHUNKS: 0},
        f', chunks of {chunks} tokens': {_CHUNKS: chunks},
      }
    for kind, changes in kinds.items():
      experiment = network.build(**changes)
      one = cost.update_memory(experiment, 0)['in_all']
      two = cost.update_memory(experiment, 1)['in_all'] + _other(experiment)
      found.note(f'{name}{kind}: one member', 'MB', one / 1e6)
      limit = Limit('≤', 2 * one / 1e6)
      found.note(f'{name}{kind}: two members', 'MB', two / 1e6, limit)
    yield found.all()


def _other(experiment: Experiment) -> int:
  """Bytes that wait while a member of two is updated."""
  state, *_, peers, memories = cost.abstract_arguments(experiment, 1)
  return precision.num_bytes((state, peers, memories))
