"""Display, files and cores, for the commands that prepare data."""

from __future__ import annotations

import argparse
import datetime
import glob
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, Task, TextColumn
from rich.progress import Progress as Bars

from data.preparing.compressed import InputError
from data.preparing.resumable import PreparationError

# The help of --overwrite.
OVERWRITE = (
  'replace DIR, and drop what another command has begun as DIR.partial'
)
# Seconds between two lines if there is no terminal.
_PLAIN_INTERVAL_S = 5.0


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
    self._printed = 0.0
    bar = [BarColumn(bar_width=20)] if console.width >= 100 else []
    self._bars = Bars(
      TextColumn('{task.description}'),
      *bar,
      TextColumn('{task.fields[status]}'),
      console=console,
      # Of rates, because the first seconds are slow.
      speed_estimate_period=120,
      disable=not console.is_terminal,
    )
    self._bars.add_task('starting', total=None, status='…')

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
    *,
    unit: str,
    notes: Sequence[str],
  ) -> None:
    """Shows the progress of a run.

    Args:
      phase: what it does.
      done: of `total`.
      total: 0 if it is not known.
      unit: of these; 'MB' for bytes.
      notes: what else to say.
    """
    [task] = self._bars.tasks
    new = phase != task.description
    if new:
      self._bars.remove_task(task.id)
      self._bars.add_task(phase, total=None, status='…')
      [task] = self._bars.tasks
    task.total = total or None  # A changed total of `update` forgets the rate.
    self._bars.update(task.id, completed=done)
    status = _status(task, unit, notes)
    self._bars.update(task.id, status=status)
    now = self._bars.get_time()
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


def _status(task: Task, unit: str, notes: Sequence[str]) -> str:
  if not task.total:
    return f'{", ".join(notes)} …'
  scale, digits = (1e6, 1) if unit == 'MB' else (1, 0)

  def shown(number):
    return f'{number / scale:,.{digits}f}'

  parts = [f'{shown(task.completed)}/{shown(task.total)} {unit}', *notes]
  if task.speed:
    left = datetime.timedelta(seconds=task.time_remaining)
    parts += [f'{shown(task.speed)} {unit}/s', f'{left} left']
  return ', '.join(parts)


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
