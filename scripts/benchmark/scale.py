"""How costs grow with members, devices, the validation set and the corpus.

Each case is a process of its own that trains a small language model on the
built-in corpus: one to eight members on one device, which all teach each other;
one member on one to eight devices, which share the same cores if they are
CPUs; ten times the held-out tokens; and ten times the training tokens. Each
number is relative to that of the first case. Limits: a member's time grows as
its FLOPs do, which `scripts/flops.py` counts, and evaluation as its tokens; all
else stays the same. 10 % are left to chance. Programs that take a second to
compile come from the cache that an earlier round left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from scripts import cost
from scripts.benchmark import job
from scripts.benchmark.job import Job
from scripts.benchmark.measure import Limit, Measure, Measures
from scripts.benchmark.networks import Network

TITLE = 'growth'
ROUNDS = 'rounds of all cases'
_SLACK = 1.1
_TRAIN, _TEST = 'data.max_train_tokens', 'data.max_test_tokens'


class Shapes(NamedTuple):
  """Shapes of the cases.

  Attributes:
    network: a config of text.
    numbers: of members, and of devices, beginning with 1.
    train_tokens: tokens of the smaller corpus.
    test_tokens: tokens of the smaller validation set.
    steps: how many are timed.
  """

  network: Network
  numbers: tuple[int, ...]
  train_tokens: int
  test_tokens: int
  steps: int


SMALL = Shapes(
  Network('lm_codistill:laptop'), (1, 2, 8), 4_000_000, 50_000, steps=5
)
FULL = Shapes(
  Network('lm_codistill:narrow'), (1, 2, 4, 8), 4_000_000, 100_000, steps=50
)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Trains in processes, one after another.

  Args:
    rounds: how many, each of all cases.
    shapes: of the cases.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  first, *others = _cases(shapes)
  for _ in range(rounds):
    base = job.start(first.job)
    results = [(case, job.start(case.job)) for case in others]
    found.note(f'{first.name}: a step', 'ms', 1e3 * base['step'])
    found.note(f'{first.name}: evaluation', 'ms', 1e3 * base['evaluation'])
    found.note(f'{first.name}: start to first step', 's', base['start'])
    if 'memory' in base:
      found.note(f'{first.name}: memory', 'MB', base['memory'] / 1e6)
    for case, result in results:
      for quantity, value in result.items():
        limit = case.growth.get(quantity, 1) * _SLACK * 100
        found.note(
          f'{case.name}: {_NAMES[quantity]}',
          '% of the first',
          100 * value / base[quantity],
          Limit('≤', limit) if quantity in case.limited else None,
        )
    yield found.all()


_NAMES = {
  'start': 'start to first step',
  'step': 'a step',
  'evaluation': 'evaluation',
  'memory': 'memory',
}


class _Case(NamedTuple):
  """A job, how much its quantities may grow, and which have a limit."""

  name: str
  job: Job
  growth: dict[str, float]
  limited: tuple[str, ...]


def _cases(shapes: Shapes) -> list[_Case]:
  base: dict[str, Any] = {
    **shapes.network.changes,
    'codistill.members': 1,
    'codistill.exchange': 'memory',
    _TRAIN: shapes.train_tokens,
    _TEST: shapes.test_tokens,
  }

  def case(name, growth, limited, devices=1, **changes):
    changes = {**base, **changes}
    one = Job(shapes.network.config, changes, devices, shapes.steps)
    return _Case(name, one, growth, limited)

  experiment = shapes.network.build()
  flops = {
    members: cost.update_flops(experiment, members - 1).products
    for members in shapes.numbers
  }
  return [
    case('one member', {}, ()),
    *(
      case(
        f'{members} members',
        {'step': members * flops[members] / flops[1], 'evaluation': members},
        ('step', 'evaluation'),
        **{'codistill.members': members},
      )
      for members in shapes.numbers[1:]
    ),
    *(
      case(f'{devices} devices', {}, ('step', 'evaluation'), devices)
      for devices in shapes.numbers[1:]
    ),
    case(
      'validation set × 10',
      {'evaluation': 10},
      ('start', 'step', 'evaluation', 'memory'),
      **{_TEST: 10 * shapes.test_tokens},
    ),
    case(
      'corpus × 10',
      {},
      ('start', 'step', 'evaluation', 'memory'),
      **{_TRAIN: 10 * shapes.train_tokens},
    ),
  ]
