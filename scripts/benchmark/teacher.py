"""The cost of a teacher for its student, in each precision.

One member trains a ResNet-18 (11.7 million parameters, batches of 16 random
images of 16×16) with a peer's weights in float32, bfloat16 and int8, and
without a peer, updates of each kind in turn.
"""

from __future__ import annotations

from collections.abc import Iterator

from codistill import precision
from scripts import cost
from scripts.benchmark.measure import Measure, Measures, in_turn
from scripts.benchmark.networks import Network, make_updates, resnet

TITLE = 'ResNet-18, an update'
ROUNDS = 'rounds of half a second of each kind'
SMALL = FULL = resnet(18, 64, batch_size=16)
_ALONE = 'without a teacher'


def measure(rounds: int, shapes: Network) -> Iterator[list[Measure]]:
  """Times updates in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: of the network.

  Yields:
    All measurements so far, after each round.
  """
  experiments = {
    name: shapes.build(**{'codistill.teacher_precision': name})
    for name in precision.PRECISIONS
  }
  kinds = {_ALONE: (experiments[precision.FULL], 0)} | {
    f'teacher in {name}': (one, 1) for name, one in experiments.items()
  }
  updates = {
    kind: make_updates(experiment, [teachers])[teachers]
    for kind, (experiment, teachers) in kinds.items()
  }
  found = Measures()
  for seconds in in_turn(updates, rounds):
    for kind, each in seconds.items():
      found.note(f'time, {kind}', 'ms', 1e3 * each)
    full = seconds[f'teacher in {precision.FULL}']
    for name in precision.PRECISIONS[1:]:
      found.note(
        f'time, {name} beside float32',
        '%',
        100 * seconds[f'teacher in {name}'] / full,
      )
    yield found.all()
  for name, experiment in experiments.items():
    _, _, [copy], *_ = cost.abstract_arguments(experiment, 1)
    held = precision.num_bytes(copy)
    found.note(f'published and held, {name}', 'MB', held / 1e6)
  for kind, (experiment, teachers) in kinds.items():
    needed = cost.update_memory(experiment, teachers)
    found.note(f'memory, {kind}', 'MB', needed['in_all'] / 1e6)
    running = needed['while_it_runs'] / 1e6
    found.note(f'of it while it runs, {kind}', 'MB', running)
  yield found.all()
