"""What exchanging weights through a folder costs a training loop.

One member trains a ResNet-18 (11.7 million numbers) on random images. In turn
an interval of 50 updates with the exchange, which publishes once and takes up
one publication of a peer, and one without.
"""

from __future__ import annotations

import gc
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import psutil
from etils import epath

from codistill import precision, publication, topology
from codistill.checkpoint_exchange import CheckpointExchange
from codistill.publication import Notes
from codistill.train_step import Metrics, TrainState
from scripts.benchmark.measure import Measure, Measures, make_subject

TITLE = 'ResNet-18, an interval of 50 updates'
ROUNDS = 'pairs of intervals'
_INTERVAL_STEPS = 50
# Seconds to wait for what the background does after an interval.
_PATIENCE_S = 120.0


def measure(rounds: int) -> Iterator[list[Measure]]:
  """Trains intervals with the exchange and without, in turn.

  Args:
    rounds: of an interval of each kind; one more goes before and is not
      counted.

  Yields:
    After each pair of intervals, and at the end, all that has been measured.
  """
  with tempfile.TemporaryDirectory() as folder:
    yield from _measure(rounds, pathlib.Path(folder))


def _measure(rounds: int, folder: pathlib.Path) -> Iterator[list[Measure]]:
  _, _, updates, state, batch = make_subject()
  found = Measures()

  exchange = CheckpointExchange(
    folder,
    topology.make_topology('all', 2),
    members=(0,),
    like=state.variables,
    reload_interval_steps=_INTERVAL_STEPS,
    keep_s=0.0,
  )
  step, late = 0, None
  with exchange:
    for number in range(rounds + 1):
      counted = number > 0
      _publish_as_peer(folder, state, step)
      began = time.perf_counter()
      for _ in range(_INTERVAL_STEPS):
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
      for _ in range(_INTERVAL_STEPS):
        state, metrics = updates.burn_in(state, batch)
        late = _fetch(late, metrics)
      jax.block_until_ready(state)
      seconds_without = time.perf_counter() - began
      if not counted:
        continue
      found.note('interval without exchange', 's', seconds_without)
      found.note('interval with exchange', 's', seconds_with)
      found.note(
        'difference',
        '% of the interval',
        100 * (seconds_with / seconds_without - 1),
      )
      found.note('stall of the train loop', 'ms', 1e3 * stall)
      found.note('stall', '% of the interval', 100 * stall / seconds_with)
      found.note('to publish', 's', events['publish']['took_seconds'])
      found.note('to load', 's', events['load']['took_seconds'])
      found.note('bytes of a publication', 'MB', events['load']['bytes'] / 1e6)
      found.note(
        'the same on disk',
        'MB',
        _size(folder / '1' / str(events['load']['publication'])) / 1e6,
      )
      yield found.all()
  # As many peers as there were intervals, one after the other and all kept.
  held = []
  [path] = (folder / '1').glob('[0-9]*')
  process = psutil.Process()
  for _ in range(rounds + 1):
    gc.collect()
    before = process.memory_info().rss
    held.append(publication.load(epath.Path(path), state.variables)[0])
    gc.collect()
    if len(held) > 1:
      grown = process.memory_info().rss - before
      found.note('memory for one more peer', 'MB', grown / 1e6)
  yield found.all()


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
