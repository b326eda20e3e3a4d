"""What exchanging weights through a folder costs a training loop.

One member trains ResNets of 1, 25 and 100 million parameters on random images.
For each, an interval of updates with the exchange, which publishes once and
loads one publication of a peer, alternates with an interval without. Limit: a
stall of 2 % of the interval.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from codistill import precision
from codistill.exchange import topology
from codistill.exchange.folder import publication
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.publication import Notes
from codistill.exchange.folder.settings import Settings
from codistill.storage import step_folders
from codistill.train_state import TrainState
from codistill.train_step import Metrics
from scripts.benchmark import networks
from scripts.benchmark.measure import Limit, Measure, Measures

TITLE = 'an interval of updates'
ROUNDS = 'rounds of pairs of intervals'
_AIM = Limit('≤', 2)
# Seconds to wait for the background work of an interval.
_PATIENCE_S = 120.0


class Shapes(NamedTuple):
  """Networks, and updates in an interval, by millions of parameters."""

  networks: Mapping[int, networks.Network]
  interval_steps: Mapping[int, int]


# Large networks take fewer updates: their number does not change the stall.
SMALL = Shapes(networks.RESNETS, {1: 50, 25: 10, 100: 5})
FULL = Shapes(networks.RESNETS, dict.fromkeys(networks.RESNETS, 50))


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Trains intervals with the exchange and without, in turn.

  Args:
    rounds: how many pairs of intervals; an uncounted one goes first.
    shapes: of networks and intervals.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  with contextlib.ExitStack() as stack:
    runs = {}
    for size, network in shapes.networks.items():
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      run = _Run(pathlib.Path(folder), network, shapes.interval_steps[size])
      runs[size] = stack.enter_context(run)
    for number in range(rounds + 1):
      for size, run in runs.items():
        for name, unit, value, limit in run.measure():
          if number:
            found.note(f'{size} M: {name}', unit, value, limit)
      if number:
        yield found.all()


class _Run(contextlib.ExitStack):
  """A member that trains, and its exchange."""

  def __init__(
    self, folder: pathlib.Path, network: networks.Network, steps: int
  ):
    super().__init__()
    self._folder, self._steps = folder, steps
    experiment = network.build()
    self._updates = experiment.updates
    self._state, self._batch = networks.start(experiment)
    self._step = 0
    self._exchange = self.enter_context(
      CheckpointExchange(
        folder,
        topology.make_topology('all', 2),
        Settings(reload_interval_steps=steps, keep_s=0.0),
        members=(0,),
        like=self._state.variables,
      )
    )

  def measure(self) -> Iterator[tuple[str, str, float, Limit | None]]:
    """Trains an interval of each kind; yields names, units, values, limits."""
    exchange = self._exchange
    _publish_as_peer(self._folder, self._state, self._step)
    seconds_with = self._train(exchange)
    events, stall = _drain(exchange)
    seconds_without = self._train(None)
    load = events['load']
    written = self._folder / '1' / str(load['publication'])
    share = 100 * stall / seconds_with
    yield 'interval without exchange', 's', seconds_without, None
    yield 'interval with exchange', 's', seconds_with, None
    more = 100 * (seconds_with / seconds_without - 1)
    yield 'difference', '% of the interval', more, None
    yield 'stall of the train loop', 'ms', 1e3 * stall, None
    yield 'stall', '% of the interval', share, _AIM
    yield 'to publish', 's', events['publish']['took_seconds'], None
    yield 'to load', 's', load['took_seconds'], None
    yield 'bytes of a publication', 'MB', load['bytes'] / 1e6, None
    yield 'the same on disk', 'MB', _size(written) / 1e6, None

  def _train(self, exchange: CheckpointExchange | None) -> float:
    """Trains an interval; returns its seconds."""
    began, late = time.perf_counter(), None
    for _ in range(self._steps):
      if exchange is not None:
        self._step += 1
        # Peers are not used, because the cost of ψ is not measured here.
        exchange.freshest(0, self._step)
      self._state, metrics = self._updates.burn_in(self._state, self._batch)
      if exchange is not None:
        exchange.offer(
          0, self._step, self._state.variables, metrics['task_loss']
        )
      late = _fetch(late, metrics)
    jax.block_until_ready(self._state)
    return time.perf_counter() - began


def _fetch(late: Metrics | None, metrics: Metrics) -> Metrics:
  """Fetches metrics one update late, as the train loop does."""
  if late is not None:
    jax.device_get(late)
  return metrics


def _publish_as_peer(
  folder: pathlib.Path, state: TrainState, step: int
) -> None:
  """Publishes as member 1, outside the measured time."""
  for old in step_folders.finished(epath.Path(folder) / '1'):
    step_folders.remove(epath.Path(folder) / '1' / str(old))
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
  """Waits for the interval's events; returns them and its stall."""
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
