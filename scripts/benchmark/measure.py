"""Numbers and clocks, which all parts of the benchmark share."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

from experiments import record

ROOT = pathlib.Path(__file__).parent.parent.parent
# The least time to measure by the clock, and how long batches are read.
TIMED_SECONDS = 0.5
READ_SECONDS = 1.0
Kind = TypeVar('Kind', bound=Hashable)


class Limit(NamedTuple):
  """A bound that a number is to keep: '≤' or '≥', and a value."""

  sign: str
  value: float

  def is_met(self, value: float) -> bool:
    """Whether a number keeps the bound."""
    return value <= self.value if self.sign == '≤' else value >= self.value


class Measure(NamedTuple):
  """A number that was measured several times, with its limit if any."""

  name: str
  unit: str
  values: list[float]
  limit: Limit | None = None


class Measures:
  """All numbers of a part, in the order in which they first came."""

  def __init__(self):
    """Starts empty."""
    self._found: dict[str, Measure] = {}

  def note(
    self, name: str, unit: str, value: float, limit: Limit | None = None
  ) -> None:
    """Adds a value to those of this name."""
    new = Measure(name, unit, [], limit)
    self._found.setdefault(name, new).values.append(value)

  def all(self) -> list[Measure]:
    """All measures so far."""
    return list(self._found.values())


def seconds(function: Callable[[], object], times: int) -> float:
  """Seconds that calls take, until the last one's result is there."""
  began = time.perf_counter()
  results = [function() for _ in range(times)]
  jax.block_until_ready(results[-1])
  return time.perf_counter() - began


def enough(one: float) -> int:
  """How many calls fill `TIMED_SECONDS`, if one takes `one` seconds."""
  return math.ceil(TIMED_SECONDS / one) or 1


def in_turn(
  functions: Mapping[Kind, Callable[[], object]], rounds: int
) -> Iterator[dict[Kind, float]]:
  """`take_turns` for functions, timed with `seconds`."""
  return take_turns(
    {
      kind: functools.partial(seconds, function)
      for kind, function in functions.items()
    },
    rounds,
  )


def take_turns(
  timers: Mapping[Kind, Callable[[int], float]], rounds: int
) -> Iterator[dict[Kind, float]]:
  """Seconds of a call of each kind, round by round.

  Each kind is called once to compile, and once more to see how many calls fill
  half a second.

  Args:
    timers: by name; each makes so many calls, and returns their seconds.
    rounds: how many; each times all kinds, one after the other.
  """
  times = {}
  for kind, timer in timers.items():
    timer(1)
    times[kind] = enough(timer(1))
  for _ in range(rounds):
    yield {
      kind: timer(times[kind]) / times[kind] for kind, timer in timers.items()
    }


class Read(NamedTuple):
  """Seconds to the first batch; then batches, seconds and CPU seconds."""

  first: float
  batches: int
  seconds: float
  cpu: float


def read(dataset: Any, batch_size: int) -> Read:
  """Reads for a second as one of two members reads.

  Args:
    dataset: whose `train` gives the batches.
    batch_size: of a batch.
  """
  began = time.perf_counter()
  batches = dataset.train(
    member=0, members=2, partition='disjoint', seed=0, batch_size=batch_size
  )
  next(batches)
  first, cpu = time.perf_counter(), time.process_time()
  count = 0
  while time.perf_counter() - first < READ_SECONDS:
    next(batches)
    count += 1
  seconds = time.perf_counter() - first
  cpu = time.process_time() - cpu
  batches.close()
  return Read(first - began, count, seconds, cpu)


def machine() -> dict[str, Any]:
  """The machine and the versions that the numbers depend on."""
  return {
    'cpu': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    # These change as other parts write their numbers.
    **record.code_version(ROOT, besides=('experiments/results',)),
    **record.package_versions(('jax', 'orbax-checkpoint')),
  }
