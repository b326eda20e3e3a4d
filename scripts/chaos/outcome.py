"""The outcome of a fault: a result or a failure, after bounded waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  from scripts.chaos.runs import Job

# Seconds: the bound of every wait, and the time between two looks. A process
# that shares a core with many may take half a minute to its first row.
LONG_S = 180.0
LOOK_S = 0.05


class FailedError(Exception):
  """Something was lost that must not be, or did not come back in time."""


class Result(NamedTuple):
  """The outcome of a fault: a line of the table.

  Attributes:
    how: how it was done.
    lost: what it cost.
    recovery: how long recovery took.
  """

  how: str
  lost: str
  recovery: str


def expect(condition: Any, what: str) -> None:
  """Raises a `FailedError` with the message `what` if a condition is false."""
  if not condition:
    raise FailedError(what)


def until(
  condition: Callable[[], Any],
  what: str,
  jobs: Sequence[Job] = (),
  progress: Callable[[], Any] = lambda: None,
) -> float:
  """Waits for a condition, within bounds, and only while processes live.

  Args:
    condition: true when the wait is over.
    what: its name, for errors.
    jobs: processes that must not end before.
    progress: when its value changes, the bound begins anew.

  Returns:
    The seconds that it took.

  Raises:
    FailedError: if it did not come true in time, or one of `jobs` has ended.
  """
  began = moved = time.monotonic()
  at = progress()
  while not condition():
    if (now := progress()) != at:
      at, moved = now, time.monotonic()
    for job in jobs:
      expect(job.process.poll() is None, f'{what}: {job.ended()}')
    expect(time.monotonic() - moved < LONG_S, f'{what}: not in {LONG_S:g} s')
    time.sleep(LOOK_S)
  return time.monotonic() - began
