"""Computes network and storage of exchanged weights and of all-reduce.

  python -m scripts.scaling [--step-seconds=1] [--reload-interval-steps=50]
    [--share-of-peak=0.13] [--tokens-per-second PLAN=RATE …]
    [--into=docs/scaling.md]

It computes tables from sizes, and, where they say so, from the sizes and
seconds that `python -m scripts.benchmark publication` measured, in
experiments/results/benchmark.json. It also computes the cost of the paper's
language-model run (`scripts/plan.py`), at a share of the devices' peak or at
measured rates: tokens a second of codistilling updates, the sum of both
members' `examples_per_second` in a run's rows. It prints Markdown, or puts it
between the markers of a file. It starts no jax and reads no clock: the same
arguments give the same tables.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

from experiments.errors import positive
from experiments.paths import local_path
from scripts import markdown, plan

_MEASURED = (
  pathlib.Path(__file__).parent.parent / 'experiments/results/benchmark.json'
)
# Millions of parameters, and an example of that size.
_NETWORKS = {
  1: 'a small ResNet-18',
  25.6: 'ResNet-50',
  100: 'a small language model',
  1_000: '',
  7_000: 'a common open language model',
}
_BYTES = {'float32': 4, 'bfloat16': 2, 'int8': 1}
_MEMBERS = (2, 4, 8, 16, 32, 64, 128)
# Gigabytes a second that a folder gives to all its readers together.
_FOLDERS = {'a file server': 1.0, 'a parallel file system': 50.0}
_MOST_MEMBERS = 4_096
# Assumed share of the devices' peak: that of the one device which was measured
# (`plan.MEASURED`).
_SHARE_OF_PEAK = 0.13


def all_reduce_bytes(parameters: float, workers: int) -> float:
  """Bytes that one worker sends in one step of synchronous SGD.

  In a ring, each part of the gradient goes round once to be added up and once
  to be distributed, which is as little as any all-reduce needs (Patarasuk &
  Yuan, 2009). A worker receives as many.

  Args:
    parameters: of the network; gradients are float32.
    workers: in the ring.
  """
  return 2 * (workers - 1) / workers * 4 * parameters


def exchange_bytes(
  publication_bytes: float, interval_steps: int, teachers: int, hosts: int = 1
) -> float:
  """Bytes that one member writes and reads, in the mean of its steps.

  Args:
    publication_bytes: of its weights.
    interval_steps: between two publications.
    teachers: how many; it loads each of their publications once.
    hosts: of the member; each loads them for itself.
  """
  return publication_bytes * (1 + teachers * hosts) / interval_steps


def teachers(graph: str, members: int) -> int:
  """Number of a member's teachers: all others, two at random, or the next."""
  return {
    'all': members - 1,
    'random-2': min(2, members - 1),
    'ring': min(1, members - 1),
  }[graph]


def folder_rate(
  publication_bytes: float,
  members: int,
  graph: str,
  interval_steps: int,
  step_seconds: float,
  hosts: int = 1,
) -> float:
  """Bytes a second that all members together write and read."""
  each = exchange_bytes(
    publication_bytes, interval_steps, teachers(graph, members), hosts
  )
  return members * each / step_seconds


def most_members(
  rate: float,
  publication_bytes: float,
  graph: str,
  interval_steps: int,
  step_seconds: float,
) -> int:
  """Most members that a folder with such a rate can serve; 0 if not two.

  No more than 4,096 are tried.
  """
  fit = [
    members
    for members in range(2, _MOST_MEMBERS + 1)
    if folder_rate(
      publication_bytes, members, graph, interval_steps, step_seconds
    )
    <= rate
  ]
  return max(fit, default=0)


@functools.cache
def _benchmark() -> dict[str, list[float]]:
  found = json.loads(_MEASURED.read_text(encoding='utf-8'))
  return found['publication']['values']


def measured(size: int, precision: str, quantity: str) -> float:
  """A median from the benchmark.

  Args:
    size: of the network, in millions of parameters: 1, 25 or 100.
    precision: of the publication.
    quantity: with its unit, 'bytes (MB)' for example.
  """
  return statistics.median(_benchmark()[f'{size} M, {precision}: {quantity}'])


def network_table(interval_steps: int) -> str:
  """Bytes a step: of a worker that all-reduces, of a member that exchanges."""
  header = [
    'parameters (M)',
    *(
      f'all-reduce, one of {workers:,} workers (MB a step)'
      for workers in (2, 8, 128, 256)
    ),
    *(f'a member of two, {name} (MB a step)' for name in _BYTES),
    'such as',
  ]
  lines = [
    [
      f'{millions:,}',
      *(
        markdown.number(all_reduce_bytes(millions, workers))
        for workers in (2, 8, 128, 256)
      ),
      *(
        markdown.number(exchange_bytes(millions * width, interval_steps, 1))
        for width in _BYTES.values()
      ),
      what,
    ]
    for millions, what in _NETWORKS.items()
  ]
  return markdown.table(header, lines)


def folder_table(interval_steps: int, step_seconds: float) -> str:
  """Megabytes a second through the folder, ResNet-50."""
  kinds = [
    (graph, name)
    for name in ('float32', 'int8')
    for graph in ('all', 'random-2', 'ring')
  ]
  header = ['members', *(f'{graph}, {name} (MB/s)' for graph, name in kinds)]
  header += ['in the folder at a time, int8 (MB)', 'listings a second, all']
  lines = [
    [
      f'{members}',
      *(
        markdown.number(
          folder_rate(
            measured(25, name, 'bytes (MB)'),
            members,
            graph,
            interval_steps,
            step_seconds,
          )
        )
        for graph, name in kinds
      ),
      markdown.number(
        members
        * max(3, math.ceil(30 / (interval_steps * step_seconds)) + 1)
        * measured(25, 'int8', 'on disk (MB)')
      ),
      # A member lists each neighbour's folder twice a second.
      f'{2 * members * (members - 1):,}',
    ]
    for members in _MEMBERS
  ]
  return markdown.table(header, lines)


def limit_table(interval_steps: int, step_seconds: float) -> str:
  """Most members that a folder serves before publications queue up."""
  header = [
    'parameters (M)',
    *(
      f'{graph}, {name}, {where} ({rate:g} GB/s)'
      for where, rate in _FOLDERS.items()
      for graph, name in (
        ('all', 'float32'),
        ('all', 'int8'),
        ('ring', 'int8'),
      )
    ),
    'such as',
  ]

  def most(rate: float, millions: float, graph: str, name: str) -> str:
    count = most_members(
      1e9 * rate,
      1e6 * millions * _BYTES[name],
      graph,
      interval_steps,
      step_seconds,
    )
    return (
      f'{count:,}' if count < _MOST_MEMBERS else f'{_MOST_MEMBERS:,} or more'
    )

  lines = [
    [
      f'{millions:,}',
      *(
        most(rate, millions, graph, name)
        for rate in _FOLDERS.values()
        for graph, name in (
          ('all', 'float32'),
          ('all', 'int8'),
          ('ring', 'int8'),
        )
      ),
      what,
    ]
    for millions, what in _NETWORKS.items()
  ]
  return markdown.table(header, lines)


def sizes_table() -> str:
  """Measured sizes of publications, and times to write and to load them."""
  quantities = ('bytes (MB)', 'on disk (MB)', 'to write (s)', 'to load (s)')
  header = ['numbers (M)', 'precision', *quantities, 'files']
  lines = [
    [
      markdown.number(measured(size, name, 'numbers (M)')),
      name,
      *(
        markdown.number(measured(size, name, quantity))
        for quantity in quantities
      ),
      f'{measured(size, name, "files ()"):.0f}',
    ]
    for size in (1, 25, 100)
    for name in _BYTES
  ]
  return markdown.table(header, lines)


def plan_network_table() -> str:
  """Megabytes a step of the paper's language model, members apart."""
  sizes = plan.cost()['bytes']['publication']
  header = [
    'plan',
    'devices of a member',
    'hosts of a member',
    'all-reduce, each device sends (MB a step)',
    *(f'both members’ exchange, {name} (MB a step)' for name in _BYTES),
    'devices',
  ]
  lines = []
  for name, (kind, devices, hosts) in plan.PLANS.items():
    # Both members take turns on one device.
    workers, readers = (max(1, number // 2) for number in (devices, hosts))
    lines.append(
      [
        f'`{name}`',
        f'{workers}',
        f'{readers}',
        markdown.number(all_reduce_bytes(sizes['float32'] / 4e6, workers)),
        *(
          markdown.number(
            plan.MEMBERS
            * exchange_bytes(
              sizes[precision] / 1e6, plan.INTERVAL_STEPS, 1, readers
            )
          )
          for precision in _BYTES
        ),
        f'{devices} {kind}',
      ]
    )
  return markdown.table(header, lines)


def tables(
  interval_steps: int,
  step_seconds: float,
  share_of_peak: float,
  rates: Mapping[str, float],
) -> dict[str, str]:
  """All tables, by the names of their markers.

  Args:
    interval_steps: between two publications.
    step_seconds: of an update.
    share_of_peak: as `plan.hours_table`.
    rates: as `plan.hours_table`.
  """
  return {
    'scaling-network': network_table(interval_steps),
    'scaling-sizes': sizes_table(),
    'scaling-folder': folder_table(interval_steps, step_seconds),
    'scaling-limit': limit_table(interval_steps, step_seconds),
    'plan-network': plan_network_table(),
    **plan.tables(share_of_peak, rates),
  }


def _rate(text: str) -> tuple[str, float]:
  """Splits 'h200-8=3e6' into its two parts."""
  name, _, rate = text.partition('=')
  if name not in plan.PLANS:
    raise argparse.ArgumentTypeError(
      f'{text!r} has no plan of {", ".join(plan.PLANS)} before an ='
    )
  return name, positive(rate)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.scaling',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--step-seconds', type=positive, default=1.0)
  parser.add_argument('--reload-interval-steps', type=int, default=50)
  parser.add_argument('--share-of-peak', type=float, default=_SHARE_OF_PEAK)
  lists = {'nargs': '+', 'action': 'extend', 'default': []}
  parser.add_argument(
    '--tokens-per-second',
    type=_rate,
    metavar='PLAN=RATE',
    help=f'measured; plans are {", ".join(plan.PLANS)}',
    **lists,
  )
  parser.add_argument('--into', type=local_path, metavar='FILE', **lists)
  arguments = parser.parse_args(argv)
  if arguments.reload_interval_steps < 1:
    parser.error('--reload-interval-steps must be at least 1')
  if not 0 < arguments.share_of_peak <= 1:
    parser.error('--share-of-peak must be above 0 and at most 1')
  rates = dict(arguments.tokens_per_second)
  if len(rates) < len(arguments.tokens_per_second):
    parser.error('--tokens-per-second names a plan twice; give it one rate')
  try:
    found = tables(
      arguments.reload_interval_steps,
      arguments.step_seconds,
      arguments.share_of_peak,
      rates,
    )
    markdown.show(found, arguments.into)
  except KeyError as error:
    print(
      f'scripts.scaling: {_MEASURED} has no {error}; measure again with '
      f'python -m scripts.benchmark model publication --json={_MEASURED}, '
      'without --full',
      file=sys.stderr,
    )
    return 2
  except (OSError, ValueError) as error:
    print(f'scripts.scaling: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
