"""Time and FLOPs of the codistilling update, relative to the burn-in update.

Each network's burn-in update, and its codistilling update with one, two and
three teachers, are timed in turn on random examples on the device. FLOPs are
those of products and convolutions, as `scripts/flops.py` counts them: a teacher
adds a forward pass to a forward and a backward one, about a third. Limit: 5 %
above the ratio of FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scripts import cost
from scripts.benchmark import networks
from scripts.benchmark.measure import Limit, Measure, Measures, in_turn
from scripts.benchmark.networks import Network

TITLE = 'updates'
ROUNDS = 'rounds of every update'
SMALL, FULL = networks.SMALL, networks.FULL
MEMBERS = (2, 3, 4)
_ABOVE_FLOPS = 1.05


def measure(
  rounds: int, shapes: Mapping[str, Network]
) -> Iterator[list[Measure]]:
  """Times updates in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: networks by name.

  Yields:
    All measurements so far, after each round.
  """
  found, updates, flops = Measures(), {}, {}
  for name, network in shapes.items():
    experiment = network.build()
    teachers = [0, *(members - 1 for members in MEMBERS)]
    for number, update in networks.make_updates(experiment, teachers).items():
      updates[name, number] = update
      flops[name, number] = cost.update_flops(experiment, number).products
  for seconds in in_turn(updates, rounds):
    for name in shapes:
      found.note(f'{name}, burn-in: time', 'ms', 1e3 * seconds[name, 0])
      for members in MEMBERS:
        more = 100 * flops[name, members - 1] / flops[name, 0]
        found.note(
          f'{name}, {members} members: time',
          '% of burn-in',
          100 * seconds[name, members - 1] / seconds[name, 0],
          Limit('≤', _ABOVE_FLOPS * more),
        )
    yield found.all()
  for name in shapes:
    for members in MEMBERS:
      more = 100 * flops[name, members - 1] / flops[name, 0]
      found.note(f'{name}, {members} members: FLOPs', '% of burn-in', more)
  yield found.all()
