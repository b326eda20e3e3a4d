"""What comes of a fault: a result or a failure, after waits with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  from scripts.chaos.runs import Job

# Seconds: the bound of every wait, and between two looks. A process may take
# half a minute to its first row where many share a core.
LONG_S = 180.0
LOOK_S = 0.05


class FailedError(Exception):
  """Something was lost that must not be, or did not come back in time."""


class Result(NamedTuple):
  """What came of a fault: a line of the table.

  Attributes:
    how: it was done.
    lost: by it.
    recovery: how long what took to come back.
  """

  how: str
  lost: str
  recovery: str


def expect(condition: Any, what: str) -> None:
  """Raises a `FailedError` that says what was not so."""
  if not condition:
    raise FailedError(what)


def until(
  condition: Callable[[], Any],
  what: str,
  jobs: Sequence[Job] = (),
  progress: Callable[[], Any] = lambda: None,
) -> float:
  """Waits, within bounds, and not for processes that have ended.

  Args:
    condition: what is waited for.
    what: it is, for errors.
    jobs: that must not end before.
    progress: while it changes, waiting begins anew.

  Returns:
    For how many seconds.

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
