"""Algorithm 1's own loop over real data, some steps at a time, timed."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from codistill import algorithm
from experiments.experiment import Experiment


class _Device:
  """The newest array that was dispatched to it."""

  newest: jax.Array | None = None

  def is_idle(self) -> bool:
    """Whether that array is computed; False before there is one."""
    return self.newest is not None and self.newest.is_ready()


class _Timed:
  """Batches, and how long the device may have waited for them."""

  def __init__(self, batches: Iterator[Any], is_idle: Callable[[], bool]):
    self._batches = batches
    self._is_idle = is_idle
    self.seconds = 0.0

  def __iter__(self) -> _Timed:
    return self

  def __next__(self) -> Any:
    began = time.perf_counter()
    batch = next(self._batches)
    if self._is_idle():
      self.seconds += time.perf_counter() - began
    return batch


class Loop:
  """Trains; fetches metrics a step late, as `experiments.train` does.

  Attributes:
    members: as the last step left them.
  """

  def __init__(self, experiment: Experiment):
    """Places the members; compiles nothing yet."""
    self.members = experiment.start()
    # Not `self`: a reference cycle would keep its workers alive.
    self._device = _Device()
    self._timed = [
      _Timed(member.batches, self._device.is_idle) for member in self.members
    ]
    for member, batches in zip(self.members, self._timed, strict=True):
      member.batches = batches
    self._reports = algorithm.codistill(
      self.members,
      experiment.updates,
      experiment.exchange,
      experiment.burn_in_steps,
      sys.maxsize - 1,
    )

  def take(self, steps: int) -> tuple[float, float]:
    """Trains.

    Args:
      steps: of all members.

    Returns:
      Seconds, and how many of them the device may have waited for input: those
      of each `next(batches)` that ended when nothing was left to compute. The
      first one does not count, because nothing was dispatched before it.
    """
    self._device.newest = None
    waited, began, late = self._waited(), time.perf_counter(), None
    for report in itertools.islice(self._reports, steps * len(self.members)):
      if late is not None:
        jax.device_get(late.metrics)
      late = report
      self._device.newest = report.metrics['task_loss']
    jax.block_until_ready([member.state for member in self.members])
    return time.perf_counter() - began, self._waited() - waited

  def _waited(self) -> float:
    return sum(batches.seconds for batches in self._timed)
