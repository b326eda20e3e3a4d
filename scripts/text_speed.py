"""How fast lanes of tokens are read, in tokens a second.

  python -m scripts.text_speed [--name=builtin] [--seconds=2]

Reads training batches of several sizes from prepared text, as a run does but
for the model. The first batch of each, for which the order of a pass is made,
is told apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from data import text

# Lanes and tokens of a lane: the paper's worker, its 128 workers, a laptop.
SIZES = ((128, 32), (16_384, 32), (32, 64))


class Speed(NamedTuple):
  """Of reading batches of one size.

  Attributes:
    batch_size: lanes.
    sequence_length: tokens of a lane in a batch.
    first_seconds: until the first batch.
    tokens_per_second: after it, by the clock.
    tokens_per_cpu_second: after it, by this process's time on all cores.
  """

  batch_size: int
  sequence_length: int
  first_seconds: float
  tokens_per_second: float
  tokens_per_cpu_second: float


def measure(
  name: str, *, seconds: float, sizes: Sequence[tuple[int, int]]
) -> list[Speed]:
  """Reads batches of each size for some seconds.

  Args:
    name: 'builtin', or a folder of prepared text.
    seconds: for each size.
    sizes: lanes, and tokens of a lane in a batch.

  Raises:
    ValueError: as `data.text.make_text`.
  """
  found = []
  for batch_size, sequence_length in sizes:
    text_set = text.make_text(
      name,
      sequence_length=sequence_length,
      max_test_tokens=None,
      cache_dir=None,
    )
    began = time.perf_counter()
    batches = text_set.train(
      member=0,
      members=2,
      partition='disjoint',
      seed=0,
      batch_size=batch_size,
    )
    next(batches)
    first, cpu = time.perf_counter(), time.process_time()
    now, count = first, 0
    while now - first < seconds:
      next(batches)
      count += 1
      now = time.perf_counter()
    tokens = count * batch_size * sequence_length
    found.append(
      Speed(
        batch_size,
        sequence_length,
        first - began,
        tokens / (now - first),
        tokens / max(time.process_time() - cpu, 1e-9),
      )
    )
    batches.close()
  return found


def table(speeds: Sequence[Speed]) -> Table:
  """A line a size."""
  shown = Table(box=box.SIMPLE_HEAD)
  for column in (
    'lanes',
    'tokens each',
    'first batch (s)',
    'M tokens/s',
    'M tokens/s of CPU',
  ):
    shown.add_column(column, justify='right')
  for speed in speeds:
    shown.add_row(
      f'{speed.batch_size:,}',
      f'{speed.sequence_length:,}',
      f'{speed.first_seconds:.3f}',
      f'{speed.tokens_per_second / 1e6:,.0f}',
      f'{speed.tokens_per_cpu_second / 1e6:,.0f}',
    )
  return shown


def main(arguments: Sequence[str] | None = None) -> str | None:
  """Runs the command line; returns what `sys.exit` takes."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.text_speed',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--name', default='builtin', metavar='NAME')
  parser.add_argument('--seconds', type=float, default=2.0)
  flags = parser.parse_args(arguments)
  try:
    Console().print(
      table(measure(flags.name, seconds=flags.seconds, sizes=SIZES))
    )
  except ValueError as error:
    return str(error)
  return None


if __name__ == '__main__':
  sys.exit(main())
