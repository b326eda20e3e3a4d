"""Starts a member's processes, watches them, and starts them again."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.processes import last_words, start
from experiments.record import read_run
from scripts.status import phase_of

# The time that a member's other processes have to end when one has died.
_GRACE_S = 10.0
# The pause before the first restart; it doubles before each further one.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# Signals that stop a run; its status is 128 + n if it could write a
# checkpoint.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
# Exit statuses of experiments.run.
_REFUSED = 2
_LOST_OTHERS = 3


class Process(NamedTuple):
  """A process to start: its command, log and whole environment."""

  command: Sequence[str]
  log: pathlib.Path
  environment: Mapping[str, str]


class Member:
  """A member's processes, through all of its restarts.

  Attributes:
    index: its number.
    restarts: how often it was started again.
    end: done, diverged, dead, refused, stopped or killed; '' before the end.
    is_stopping: whether it was asked to end.
  """

  def __init__(
    self,
    index: int,
    workdir: pathlib.Path,
    processes: Callable[[], Sequence[Process]],
    max_restarts: int,
  ):
    """Starts nothing yet.

    Args:
      index: its number.
      workdir: of the run.
      processes: called at each start, because several need a new port.
      max_restarts: how often it may be started again.
    """
    self.index = index
    self.restarts = 0
    self.end = ''
    self.is_stopping = False
    self._workdir = workdir
    self._asked = processes
    self._max_restarts = max_restarts
    self._at_work: list[tuple[Process, subprocess.Popen, int]] = []
    self._start_at = time.monotonic()
    self._first: tuple[float, int] | None = None
    self._is_killed = False

  @property
  def is_over(self) -> bool:
    """Whether nothing runs, or will run again."""
    return bool(self.end) and not self._at_work

  @property
  def is_waiting(self) -> bool:
    """Whether it died and is yet to be started again."""
    return not self._at_work and not self.end and self.restarts > 0

  def step(self) -> str | None:
    """Starts the processes if it is time, or looks at those that run.

    Returns:
      A sentence, if something went wrong.
    """
    now = time.monotonic()
    if not self._at_work:
      if not self.end and now >= self._start_at:
        self._start()
      return None
    statuses = [popen.poll() for _, popen, _ in self._at_work]
    if self._first is None:
      failed = [k for k, status in enumerate(statuses) if status]
      if failed:
        # Others that end after it only say that it is gone.
        self._first = now, min(failed, key=lambda k: _rank(statuses[k]))
    if None not in statuses:
      return self._settle(statuses)
    # The processes of a world end together. If one is missing, for example
    # because it never joined, the others might wait for minutes.
    if self._first and now - self._first[0] > _GRACE_S:
      self.stop(kill=True)
    return None

  def stop(self, kill: bool) -> None:
    """Makes all of its processes write a checkpoint and end, or kills them."""
    if kill:
      self._is_killed = True
    else:
      self.is_stopping = True
      if not self._at_work and not self.end:
        self.end = 'stopped'
    for _, popen, _ in self._at_work:
      with contextlib.suppress(ProcessLookupError):
        popen.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

  def wait(self) -> None:
    """Waits until its processes have ended."""
    for _, popen, _ in self._at_work:
      popen.wait()

  def _start(self) -> None:
    self._first, self._is_killed = None, False
    for process in self._asked():
      log = process.log
      size = log.stat().st_size if log.exists() else 0
      self._at_work.append((process, start(*process), size))

  def _settle(self, statuses: Sequence[int]) -> str | None:
    """Decides what a member does after all of its processes have ended."""
    ended, self._at_work = self._at_work, []
    if self._first is None:
      self.end = 'done'
      return None
    _, which = self._first
    process, _, since = ended[which]
    status = statuses[which]
    why = last_words(process.log, status, since)
    if self.is_stopping and self._is_killed and status == -signal.SIGKILL:
      self.end = 'killed'
      return None
    if status == _REFUSED:
      self.end = 'refused'
      return f'member {self.index} was refused: {why}'
    if status == 1 and self._has_diverged():
      self.end = 'diverged'
      return f'member {self.index} diverged: {why}'
    if _stopped_by(status):
      self.end = 'stopped'
      if self.is_stopping:
        return None
      return (
        f'member {self.index} was stopped by signal {_stopped_by(status)}, not '
        'by this command; the same command goes on with it'
      )
    if self.is_stopping or self.restarts == self._max_restarts:
      self.end = 'dead'
      return f'member {self.index} is dead: {why}'
    pause = min(_PAUSE_S * 2**self.restarts, _LONGEST_PAUSE_S)
    self.restarts += 1
    self._start_at = time.monotonic() + pause
    return (
      f'member {self.index} died: {why}; restart {self.restarts} of '
      f'{self._max_restarts} in {pause:g} s'
    )

  def _has_diverged(self) -> bool:
    try:
      run = read_run(file_of(self._workdir, 'run', self.index))
      return bool(run.get('diverged'))
    except (OSError, ValueError):
      return False


def file_of(workdir: pathlib.Path, kind: str, member: int) -> pathlib.Path:
  """A member's file, or that of a first phase until the second begins.

  Args:
    workdir: of the run.
    kind: run or lease.
    member: its number.
  """
  folder, is_first = phase_of(workdir)
  return folder / (f'{kind}.json' if is_first else f'{kind}-{member}.json')


def _stopped_by(status: int) -> int:
  """The signal that somebody stopped a run with, or 0."""
  number = -status if status < 0 else status - 128
  return number if number in _STOPS else 0


def _rank(status: int) -> int:
  """Ranks statuses of processes that ended at once: the lowest says why."""
  # JAX aborts processes that lose the first one of their world.
  late = {_REFUSED: 0, -signal.SIGABRT: 3, _LOST_OTHERS: 4}
  return late.get(status, 1 if _stopped_by(status) else 2)
