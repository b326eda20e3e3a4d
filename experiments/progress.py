"""Shows the progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.summary import number, percent

Row = dict[str, Any]
# Decay of the running mean of the rate, per row.
_RATE_MEMORY = 0.9
_UNITS = {'examples': 'ex', 'tokens': 'tok'}


class RunProgress:
  """A line per member: step, rate, both losses, age of the peers, time left."""

  def __init__(
    self,
    console: Console,
    name: str,
    *,
    members: tuple[int, ...],
    num_steps: int,
    start_step: int,
    unit: str,
    plain_interval_seconds: float = 2.0,
  ):
    """Prepares the display; it shows from `__enter__` to `__exit__`.

    Args:
      console: the output; `console.is_terminal` decides between bars and lines.
      name: of the run.
      members: their numbers; each has a bar.
      num_steps: of each member.
      start_step: updates done before.
      unit: of the rate: examples or tokens.
      plain_interval_seconds: least time between two plain lines.
    """
    self._console = console
    self._name = name
    self._num_steps = num_steps
    self._start_step = start_step
    self._unit = _UNITS.get(unit, unit)
    self._interval = plain_interval_seconds
    self._latest: dict[int, Row] = {}
    self._rates: dict[int, float] = {}
    # Set at the first row, so that compiling does not count as slow steps.
    self._clock: tuple[float, int] | None = None
    self._printed = time.monotonic()
    # In 80 columns only the numbers fit, which say more than the bar.
    bar = [BarColumn(bar_width=20)] if console.width >= 100 else []
    self._bars = Progress(
      TextColumn('{task.description}'),
      *bar,
      TextColumn('{task.completed:,}/{task.total:,}'),
      TextColumn('{task.fields[status]}'),
      console=console,
      disable=not console.is_terminal,
    )
    self._tasks = {
      member: self._bars.add_task(
        f'#{member}',
        total=num_steps,
        completed=start_step,
        status='compiling …',
      )
      for member in members
    }

  def __enter__(self) -> RunProgress:
    if not self._console.is_terminal:
      self.say(
        f'{self._name}: {self._num_steps - self._start_step} steps to go, '
        'compiling …'
      )
    self._bars.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._bars.stop()

  def say(self, line: str) -> None:
    """Prints a line above the bars."""
    self._console.print(line, highlight=False, markup=False, soft_wrap=True)

  def trained(self, row: Row) -> None:
    """Shows a train row."""
    member, rate = row['member'], row['examples_per_second']
    self._latest[member] = row
    if self._clock is None:
      self._clock = (time.monotonic(), row['step'])
    elif rate is not None:
      mean = self._rates.get(member, rate)
      self._rates[member] = _RATE_MEMORY * mean + (1 - _RATE_MEMORY) * rate
    self._bars.update(
      self._tasks[member],
      completed=row['step'],
      status=f'{self._status(row)}  {self._left(row["step"])}',
    )
    now = time.monotonic()
    if not self._console.is_terminal and now - self._printed > self._interval:
      self._printed = now
      parts = [
        f'member {member}: {self._status(latest)}'
        for member, latest in sorted(self._latest.items())
      ]
      self.say(
        f'step {row["step"]:,}/{self._num_steps:,}  {" | ".join(parts)} | '
        f'{self._left(row["step"])}'
      )

  def evaluated(self, rows: list[Row]) -> None:
    """Shows the rows of one evaluation."""
    scores = [
      f'{_name(row["member"])} '
      f'{number(row["task_loss"])} ({percent(row["accuracy"])}'
      + (
        f', averaged {number(row["average_task_loss"])})'
        if 'average_task_loss' in row
        else ')'
      )
      for row in rows
    ]
    self.say(f'step {rows[0]["step"]:,}  held out: {", ".join(scores)}')

  def _status(self, row: Row) -> str:
    rate = self._rates.get(row['member'])
    parts = [f'task {number(row["task_loss"])}']
    if row['distill_loss'] is not None:
      parts.append(f'distill {number(row["distill_loss"])}')
    if row['peer_age'] is not None:
      parts.append(f'age {row["peer_age"]}')
    if row.get('left_out'):
      peers = (f'{peer} ({why})' for peer, why in row['left_out'].items())
      parts.append(f'without {", ".join(peers)}')
    if rate is not None:
      parts.append(f'{rate:,.0f} {self._unit}/s')
    return ', '.join(parts)

  def _left(self, step: int) -> str:
    since, first = self._clock
    if step == first:
      return '…'
    pace = (time.monotonic() - since) / (step - first)
    seconds = round(pace * (self._num_steps - step))
    left = str(datetime.timedelta(seconds=seconds)).removeprefix('0:')
    return f'{left} left'


def _name(who: int | str) -> str:
  return f'member {who}' if isinstance(who, int) else who
