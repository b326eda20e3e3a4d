"""Display, files and cores, for the commands that prepare data."""

from __future__ import annotations

import argparse
import glob
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from data.preparing.compressed import InputError
from data.preparing.resumable import PreparationError

# The help of --overwrite.
OVERWRITE = (
  'replace DIR, and drop what another command has begun as DIR.partial'
)
# Seconds between two lines if there is no terminal.
_PLAIN_INTERVAL_S = 5.0
# Rates are over the last seconds, because the first ones are slow.
_RATE_WINDOW_S = 30.0


def unread(
  parser: argparse.ArgumentParser,
  flags: argparse.Namespace,
  read: Mapping[str, tuple[bool, str]],
) -> str | None:
  """Names a flag that was set but changes nothing, in a sentence.

  Args:
    parser: knows the defaults of the flags.
    flags: as they were given.
    read: by name, whether a flag is read, and when it is not.
  """
  for name, (is_read, where) in read.items():
    key = name.removeprefix('--').replace('-', '_')
    if not is_read and getattr(flags, key) != parser.get_default(key):
      return f'{name} changes nothing {where}; leave it out'
  return None


def outcome(
  work: Callable[[], None],
  output: pathlib.Path,
  *kinds: type[Exception],
  then: str = 'goes on from here',
) -> str | int | None:
  """Does a command's work; returns what `sys.exit` takes.

  Args:
    work: the work.
    output: what it makes; some errors of writing do not name a file.
    *kinds: further exceptions whose messages are for the user.
    then: what the same command does the next time.
  """
  try:
    work()
  except (PreparationError, InputError, *kinds) as error:
    return str(error)
  except OSError as error:
    where, why = error.filename or output, error.strerror or error
    return f'{where}: {why}; fix this, and the same command {then}.'
  except KeyboardInterrupt:
    print(f'Interrupted: the same command {then}.', file=sys.stderr)
    return 130
  return None


class Display:
  """Shows phase, share, rate and time left, in a bar on a terminal or lines."""

  def __init__(self, console: Console):
    """Shows from `__enter__` to `__exit__`."""
    self._console = console
    self._phase: str | None = None
    self._printed = 0.0
    self._marks: list[tuple[float, int]] = []
    bar = [BarColumn(bar_width=20)] if console.width >= 100 else []
    self._bars = Bars(
      TextColumn('{task.description}'),
      *bar,
      TextColumn('{task.fields[status]}'),
      console=console,
      disable=not console.is_terminal,
    )
    self._task = self._bars.add_task('starting', total=None, status='…')

  def __enter__(self) -> Display:
    self._bars.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._bars.stop()

  def show(
    self,
    phase: str,
    done: int,
    total: int,
    resumed: int,
    *,
    unit: str,
    notes: Sequence[str],
  ) -> None:
    """Shows the progress of a run.

    Args:
      phase: what it does.
      done: of `total`.
      total: 0 if it is not known.
      resumed: how much of `done` an earlier run did.
      unit: of these; 'MB' for bytes.
      notes: what else to say.
    """
    now = time.monotonic()
    new = phase != self._phase
    if new:
      self._phase = phase
      self._marks = [(now, resumed)]
    self._marks.append((now, done))
    while len(self._marks) > 2 and now - self._marks[1][0] > _RATE_WINDOW_S:
      del self._marks[0]
    status = self._status(done, total, unit, notes)
    self._bars.update(
      self._task,
      description=phase,
      total=total or None,
      completed=done,
      status=status,
    )
    if not self._console.is_terminal and (
      new or now - self._printed > _PLAIN_INTERVAL_S
    ):
      self._printed = now
      self._console.print(
        f'{phase}: {status}',
        highlight=False,
        markup=False,
        soft_wrap=True,
      )

  def _status(self, done, total, unit, notes):
    if not total:
      return f'{", ".join(notes)} …'
    scale, digits = (1e6, 1) if unit == 'MB' else (1, 0)
    parts = [
      f'{done / scale:,.{digits}f}/{total / scale:,.{digits}f} {unit}',
      *notes,
    ]
    (since, first), (now, last) = self._marks[0], self._marks[-1]
    if now > since and last > first:
      rate = (last - first) / (now - since)
      parts.append(f'{rate / scale:,.{digits}f} {unit}/s')
      parts.append(f'{_duration((total - done) / rate)} left')
    return ', '.join(parts)


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (
    f'{hours}:{minutes:02}:{seconds:02}'
    if hours
    else (f'{minutes}:{seconds:02}')
  )


def find_files(pattern: str) -> list[str]:
  """Paths that match a pattern, or a file of that name if there is one."""
  pattern = os.path.expanduser(pattern)
  if os.path.exists(pattern):
    return [pattern]
  return glob.glob(pattern, recursive=True)


def num_cores() -> int:
  """The cores that this process may use, if the system tells, or all."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
