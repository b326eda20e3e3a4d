"""The memory that members need on a device, by the compiler's analysis.

Nothing is run. One member needs the memory of its burn-in update. Two members
in one process need that of the codistilling update with one teacher, the other
member's state, and the copy of the first member that the other learns from; the
limit is two members without teachers. Text is measured with the plain loss and
with the loss in chunks of tokens.
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
  """Networks by name, and the tokens of a chunk."""

  networks: Mapping[str, Network]
  chunk_tokens: int


SMALL = Shapes(networks.SMALL, 256)
FULL = Shapes(networks.FULL, 256)
_CHUNKS = 'model.loss_chunk_tokens'


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Compiles updates.

  Args:
    rounds: ignored: a second analysis would say the same.
    shapes: of networks and chunks.

  Yields:
    All measurements so far, after each network.
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
  """Bytes of a member that waits while the other one is updated."""
  state, _, peers, memories, *_ = cost.abstract_arguments(experiment, 1)
  return precision.num_bytes((state, peers, memories))
