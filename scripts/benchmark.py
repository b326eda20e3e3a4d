"""What exchanging weights through a folder costs a training loop.

  python -m scripts.benchmark exchange [--intervals=5] [--json=FILE]

One member trains a ResNet-18 (11 million parameters) on random images. In turn
an interval of 50 updates with the exchange, which publishes once and takes up
one publication of a peer, and one without: whatever else this machine does
meets both alike. Prints medians, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from absl import logging
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from codistill import (
  losses,
  optim,
  precision,
  publication,
  record,
  sharding,
  topology,
)
from codistill.checkpoint_exchange import CheckpointExchange
from codistill.models import make_resnet
from codistill.publication import Notes
from codistill.train_step import (
  Metrics,
  TrainState,
  init_state,
  make_updates,
)

ROOT = pathlib.Path(__file__).parent.parent
INTERVAL_STEPS = 50
BATCH_SIZE = 16
SHAPE, CLASSES = (16, 16, 3), 1_000
# Seconds to wait for what the background does after an interval.
_PATIENCE_S = 120.0


class Figure(NamedTuple):
  """A number that was measured several times."""

  name: str
  unit: str
  values: list[float]


def measure(intervals: int, folder: pathlib.Path) -> Iterator[list[Figure]]:
  """Trains intervals with the exchange and without, in turn.

  Args:
    intervals: of each kind; one more of each goes before and is not counted.
    folder: for the exchange.

  Yields:
    After each pair of intervals, and at the end, all that has been measured.
  """
  mesh = sharding.make_mesh(1)
  model = make_resnet(
    input_shape=SHAPE,
    num_classes=CLASSES,
    depth=18,
    width=64,
    batch_norm_momentum=0.9,
    dtype='float32',
    param_dtype='float32',
  )
  optimizer = optim.make_optimizer(
    'sgd',
    'constant',
    {'rate': 0.01},
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
  )
  updates = make_updates(
    model,
    optimizer,
    mesh,
    task_loss=losses.task_cross_entropy,
    distill_loss=losses.soft_cross_entropy,
    task_weight=1.0,
    distill_weight=1.0,
    constant_targets=None,
    memory_reset_probability=0.0,
    loss_chunk_tokens=None,
  )
  key = jax.random.key(0)
  state = sharding.replicate(
    init_state(
      model, optimizer, batch_size=BATCH_SIZE, init_key=key, noise_key=key
    ),
    mesh,
  )
  rng = np.random.default_rng(0)
  batch = sharding.split_batch(
    {
      'inputs': rng.normal(size=(BATCH_SIZE, *SHAPE)).astype(np.float32),
      'labels': rng.integers(CLASSES, size=BATCH_SIZE).astype(np.int32),
    },
    mesh,
  )
  found: dict[str, Figure] = {}

  def note(name: str, unit: str, value: float) -> None:
    found.setdefault(name, Figure(name, unit, [])).values.append(value)

  exchange = CheckpointExchange(
    folder,
    topology.make_topology('all', 2),
    members=(0,),
    like=state.variables,
    reload_interval_steps=INTERVAL_STEPS,
    keep_s=0.0,
  )
  step, late = 0, None
  with exchange:
    for number in range(intervals + 1):
      counted = number > 0
      _publish_as_peer(folder, state, step)
      began = time.perf_counter()
      for _ in range(INTERVAL_STEPS):
        step += 1
        # The peers are asked for and not used: what ψ costs is another matter.
        exchange.freshest(0, step)
        state, metrics = updates.burn_in(state, batch)
        exchange.offer(0, step, state.variables, metrics['task_loss'])
        late = _fetch(late, metrics)
      jax.block_until_ready(state)
      seconds_with = time.perf_counter() - began
      events, stall = _drain(exchange)
      began = time.perf_counter()
      for _ in range(INTERVAL_STEPS):
        state, metrics = updates.burn_in(state, batch)
        late = _fetch(late, metrics)
      jax.block_until_ready(state)
      seconds_without = time.perf_counter() - began
      if not counted:
        continue
      note('interval without exchange', 's', seconds_without)
      note('interval with exchange', 's', seconds_with)
      note(
        'difference',
        '% of the interval',
        100 * (seconds_with / seconds_without - 1),
      )
      note('stall of the train loop', 'ms', 1e3 * stall)
      note('stall', '% of the interval', 100 * stall / seconds_with)
      note('to publish', 's', events['publish']['took_seconds'])
      note('to load', 's', events['load']['took_seconds'])
      note('bytes of a publication', 'MB', events['load']['bytes'] / 1e6)
      note(
        'the same on disk',
        'MB',
        _size(folder / '1' / str(events['load']['publication'])) / 1e6,
      )
      yield list(found.values())
  # As many peers as there were intervals, one after the other and all kept.
  held = []
  [path] = (folder / '1').glob('[0-9]*')
  process = psutil.Process()
  for _ in range(intervals + 1):
    gc.collect()
    before = process.memory_info().rss
    held.append(publication.load(epath.Path(path), state.variables)[0])
    gc.collect()
    if len(held) > 1:
      grown = process.memory_info().rss - before
      note('memory for one more peer', 'MB', grown / 1e6)
  yield list(found.values())


def _fetch(late: Metrics | None, metrics: Metrics) -> Metrics:
  """Metrics one update late, as the train loop asks for them."""
  if late is not None:
    jax.device_get(late)
  return metrics


def _publish_as_peer(
  folder: pathlib.Path, state: TrainState, step: int
) -> None:
  """Leaves a publication of member 1, outside of what is measured."""
  for old in publication.steps(epath.Path(folder) / '1'):
    publication.remove(epath.Path(folder) / '1' / str(old))
  publication.write(
    epath.Path(folder) / '1',
    state.variables,
    Notes(
      member=1,
      step=step,
      incarnation=1,
      wall_time=time.time(),
      task_loss=1.0,
      config_hash='',
      precision='float32',
      num_bytes=precision.num_bytes(state.variables),
    ),
  )


def _drain(
  exchange: CheckpointExchange,
) -> tuple[dict[str, dict[str, Any]], float]:
  """What happened in the interval, once all of it has; and its stall."""
  account = exchange.account(0)
  events = {event['event']: dict(event) for event in account.events}
  deadline = time.monotonic() + _PATIENCE_S
  while {'publish', 'load'} - events.keys():
    if time.monotonic() > deadline:
      raise TimeoutError('nothing was published, or nothing loaded')
    time.sleep(0.05)
    later = exchange.account(0).events
    events |= {event['event']: dict(event) for event in later}
  return events, account.stall_seconds


def _size(path: pathlib.Path) -> int:
  return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())


def machine() -> dict[str, Any]:
  """What the numbers depend on."""
  return {
    'cpu': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    **record.code_version(ROOT),
    **record.package_versions(('jax', 'orbax-checkpoint')),
  }


def table(figures: Sequence[Figure]) -> Table:
  """A line a number: median, least, greatest."""
  shown = Table(box=box.SIMPLE_HEAD)
  shown.add_column('ResNet-18, an interval of 50 updates')
  for column in ('median', 'least', 'greatest'):
    shown.add_column(column, justify='right')
  shown.add_column('unit')
  for name, unit, values in figures:
    numbers = (statistics.median(values), min(values), max(values))
    shown.add_row(name, *(f'{number:,.3g}' for number in numbers), unit)
  return shown


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command."""
  parser = argparse.ArgumentParser(
    prog='scripts.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('what', choices=('exchange',))
  parser.add_argument('--intervals', type=int, default=5)
  parser.add_argument('--json', type=pathlib.Path, metavar='FILE')
  arguments = parser.parse_args(argv)
  if arguments.intervals < 1:
    parser.error('--intervals must be at least 1')
  logging.set_verbosity(logging.FATAL)
  console = Console()
  console.print('compiling, and an interval of each kind to warm up …')
  figures: list[Figure] = []
  with tempfile.TemporaryDirectory() as folder:
    measured = measure(arguments.intervals, pathlib.Path(folder))
    for number, so_far in enumerate(measured, start=1):
      figures = so_far
      if number <= arguments.intervals:
        console.print(f'{number} of {arguments.intervals} pairs of intervals')
  console.print(table(figures))
  if arguments.json:
    numbers = {f'{name} ({unit})': values for name, unit, values in figures}
    text = json.dumps({'machine': machine(), 'exchange': numbers}, indent=2)
    arguments.json.write_text(text + '\n', encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())
