"""How fast a click log is prepared, and read as shuffled batches.

The command prepares the synthetic log from text with two workers, rare
categories counted. Then training batches of it are read as one of two members
reads them, without a model. Rates are by the clock and by processor time, which
is that of all processes for preparing, and for reading that of this process and
its thread that reads ahead. Limits: 200,000 rows a second prepared, a million
read.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from data.clicks.dataset import HELD_OUT_FRACTION, ClickSet, make_clicks
from scripts.benchmark.measure import ROOT, Limit, Measure, Measures, read
from scripts.prepare_criteo import write_synthetic

TITLE = 'click logs'
ROUNDS = 'rounds: prepared once, read for a second in each size'
WORKERS = 2


class Shapes(NamedTuple):
  """Rows of the log, and of each batch."""

  rows: int
  batch_sizes: tuple[int, ...]


SMALL = Shapes(rows=1_000_000, batch_sizes=(1_024, 16_384))
FULL = Shapes(rows=4_000_000, batch_sizes=(1_024, 16_384))


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Prepares and reads in turn.

  Args:
    rounds: how many; an uncounted round of reading goes first.
    shapes: of the log.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / 'log.txt'
    write_synthetic(shapes.rows, HELD_OUT_FRACTION, log)
    for number in range(rounds):
      output = pathlib.Path(folder) / f'prepared-{number}'
      seconds, cpu = _prepare(log, output)
      rate = shapes.rows / seconds / 1e3
      found.note('prepared: rate', 'k rows/s', rate, Limit('≥', 200))
      found.note(
        'prepared: rate of CPU', 'k rows/s a core', shapes.rows / cpu / 1e3
      )
      for batch_size in shapes.batch_sizes:
        if not number:
          read(_open(output), batch_size)
        done = read(_open(output), batch_size)
        name = f'read in batches of {batch_size:,}'
        rows = done.batches * batch_size / 1e6
        found.note(f'{name}: first', 'ms', done.first * 1e3)
        rate = rows / done.seconds
        found.note(f'{name}: rate', 'M rows/s', rate, Limit('≥', 1))
        rate = rows / done.cpu
        found.note(f'{name}: rate of CPU', 'M rows/s a core', rate)
      yield found.all()


def _prepare(log: pathlib.Path, output: pathlib.Path) -> tuple[float, float]:
  """Prepares the log; seconds, and CPU seconds of all processes."""

  def cpu():
    times = os.times()
    # The system adds a child's times when it has ended.
    return sum(times[:4])

  began, before = time.perf_counter(), cpu()
  # In a process of its own, because its workers import what it has imported.
  line = [sys.executable, '-m', 'scripts.prepare_criteo', f'--input={log}']
  line += [f'--output={output}', f'--workers={WORKERS}']
  subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
  return time.perf_counter() - began, cpu() - before


def _open(folder: pathlib.Path) -> ClickSet:
  return make_clicks(
    str(folder),
    synthetic_rows=0,
    table_sizes=[100_000] * 26,
    max_test_rows=None,
    cache_dir=None,
  )
