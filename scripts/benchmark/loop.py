"""Algorithm 1's own loop over real data, some steps at a time, timed."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from codistill import algorithm
from experiments.build import Experiment


class _Timed:
  """Batches, and how long they were waited for."""

  def __init__(self, batches: Iterator[Any]):
    self._batches = batches
    self.seconds = 0.0

  def __iter__(self) -> _Timed:
    return self

  def __next__(self) -> Any:
    began = time.perf_counter()
    batch = next(self._batches)
    self.seconds += time.perf_counter() - began
    return batch


class Loop:
  """Metrics are fetched a step late, as `experiments.train` does.

  Attributes:
    members: as the last step left them.
  """

  def __init__(self, experiment: Experiment):
    """Places the members; compiles nothing yet."""
    self.members = experiment.start()
    self._timed = [_Timed(member.batches) for member in self.members]
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
    """Seconds of so many steps of all members, and those of `next(batches)`."""
    waited, began, late = self._waited(), time.perf_counter(), None
    for report in itertools.islice(self._reports, steps * len(self.members)):
      if late is not None:
        jax.device_get(late.metrics)
      late = report
    jax.block_until_ready([member.state for member in self.members])
    return time.perf_counter() - began, self._waited() - waited

  def _waited(self) -> float:
    return sum(batches.seconds for batches in self._timed)
