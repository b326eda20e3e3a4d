"""Runs all members as processes of this machine, and shows them in a table.

Their progress is read from their files, as in scripts.status.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import fcntl
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from codistill.exchange.folder.lease import is_held, read_lease
from experiments.errors import UserError
from experiments.processes import say
from experiments.summary import number
from scripts.launch.member import Member, file_of
from scripts.status import Status, phase_of, read_status, status_table

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
# What a living member's files may say of it, if they are of its present life.
_TOLD = ('running', 'done', 'diverged')
# States to announce when they begin; sentences announce the others.
_NEWS = ('running', 'done', 'stopped')
# Columns to leave out first on a narrow terminal.
_SPARE = ('life', 'failed', 'newest')
# More columns than a terminal has.
_UNBOUNDED = 10_000
# Members in these states are left out first where a terminal has few lines.
_WELL = ('running', 'done')


def members_at_work(
  workdir: pathlib.Path, members: int
) -> dict[int, dict[str, Any]]:
  """The leases of the members that are alive, by member."""
  paths = [file_of(workdir, 'lease', member) for member in range(members)]
  found = [read_lease(path) for path in paths]
  return {
    member: lease
    for member, (path, lease) in enumerate(zip(paths, found, strict=True))
    if is_held(path, lease, probe=False)
  }


def still_at_work(
  workdir: pathlib.Path, at_work: Mapping[int, Mapping[str, Any]]
) -> UserError:
  """Says which members, how to watch them and how to stop them."""
  which = ', '.join(map(str, at_work))
  pids = ' '.join(str(lease['pid']) for lease in at_work.values())
  hosts = ', '.join(sorted({lease['host'] for lease in at_work.values()}))
  return UserError(
    f'still at work in {workdir}: member{"s" * (len(at_work) > 1)} {which}; '
    f'watch with python -m scripts.status {workdir} --watch 5, or stop with '
    f'checkpoints (kill {pids}, on {hosts})'
  )


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other launchers on this machine out of a workdir.

  Leases tell one launcher from another only when members have begun, and until
  then each of two might start some of them.

  Raises:
    UserError: if there is another, or the workdir cannot be written to.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / '.launch.lock', 'w')  # noqa: SIM115
  except OSError as error:
    raise UserError(
      f'cannot write to {workdir} ({error.strerror}); choose another --workdir'
    ) from error
  with lock:
    try:
      # The system releases it however this process ends.
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f'another scripts.launch is at work in {workdir}; stop it, or choose '
        'another --workdir'
      ) from error
    except OSError:
      pass  # A file system without locks; leases still protect members.
    yield


class Picture:
  """All members as they were at the last look, and the work left.

  Attributes:
    statuses: of each member.
    has_moved: whether a member has made a step, or ended well, so far.
  """

  def __init__(
    self,
    title: str,
    members: Sequence[Member],
    workdir: pathlib.Path,
    num_steps: int,
  ):
    """Looks at nothing yet.

    Args:
      title: of the table.
      members: all of the run.
      workdir: of the run.
      num_steps: of each member, until its files tell.
    """
    self._title = title
    # Which of two phases, if it is the first.
    self._note = ''
    self._members = members
    self._workdir = workdir
    self.has_moved = False
    # When each was last seen at its first step, so that compiling does not
    # count as slow steps.
    self._began: dict[int, tuple[float, int]] = {}
    nothing = Status(
      0, '', '', None, num_steps, None, None, '', None, None, '', ''
    )
    self.statuses = [
      nothing._replace(member=member.index) for member in members
    ]
    self.look()

  def look(self) -> None:
    """Reads the members' files; keeps the status of those it cannot read."""
    now = time.monotonic()
    found = {}
    # Files may be missing, or half written.
    with contextlib.suppress(UserError, OSError):
      found = {one.member: one for one in read_status(self._workdir)}
      self._note = phase_of(self._workdir)[1]
    for at, member in enumerate(self._members):
      status = found.get(member.index, self.statuses[at])
      status = status._replace(state=_state(member, status.state))
      self.statuses[at] = status
      self.has_moved |= member.end == 'done'
      if status.state != 'running':
        self._began.pop(member.index, None)
        continue
      step = status.step or 0
      if step <= self._began.get(member.index, (now, step))[1]:
        self._began[member.index] = now, step
      else:
        self.has_moved = True

  def table(self, console: Console, is_live: bool = False) -> Table:
    """A line a member, and a summary below: as much as there is room for.

    Args:
      console: the table fits its width.
      is_live: whether it also fits its height.
    """
    most = len(self.statuses)
    while True:
      table = self._fitting(console, most)
      lines = len(console.render_lines(table)) if is_live else 0
      if lines < console.height or most == 1:
        return table
      most = max(1, most - (lines - console.height + 1))

  def _fitting(self, console: Console, most: int) -> Table:
    """The widest table that fits, with so many members at most."""
    options = console.options.update(max_width=_UNBOUNDED)
    for short in (False, True):
      for count in range(len(_SPARE) + 1):
        table = self._table(short, _SPARE[:count], most)
        if Measurement.get(console, options, table).maximum <= console.width:
          return table
    return table

  def _table(self, short: bool, without: Sequence[str], most: int) -> Table:
    """A table of so many members at most, with each peer unless `short`."""
    at = range(len(self.statuses))
    if len(at) > most:
      at = sorted(at, key=lambda k: (self.statuses[k].state in _WELL, k))
      at = sorted(at[:most])
    shown = [
      self.statuses[k]._replace(
        # Restarts say more: all leases are held by this process's children.
        lease=str(self._members[k].restarts or ''),
        peers=_ages(self.statuses[k].peers)
        if short
        else self.statuses[k].peers,
      )
      for k in at
    ]
    table = status_table(self._title + self._note, shown)
    if not any(one.lease for one in shown):
      without = (*without, 'lease')
    table.columns = [one for one in table.columns if one.header not in without]
    for column in table.columns:
      if column.header == 'lease':
        column.header, column.justify = 'restarts', 'right'
      # Where even this is too wide, text wraps instead of being cut.
      column.no_wrap, column.overflow = False, 'fold'
    table.caption = self.line()
    if len(shown) < len(self.statuses):
      table.caption += f'; {len(self.statuses) - len(shown)} more members'
    return table

  def line(self) -> str:
    """The number of members by state; progress, rate and time left of all."""
    counts = collections.Counter(one.state for one in self.statuses)
    parts = [f'{count} {state}' for state, count in counts.items()]
    steps = sum(_steps(one) for one in self.statuses)
    total = sum(one.num_steps for one in self.statuses)
    parts.append(f'{steps / max(1, total):.0%} of {total:,} steps')
    rates = [
      one.rate for one in self.statuses if one.state == 'running' and one.rate
    ]
    if rates:
      parts.append(f'{sum(rates):,.0f} ex/s')
    seconds = self._seconds_left()
    if seconds is not None:
      parts.append(f'about {datetime.timedelta(seconds=seconds)} left')
    return ', '.join(parts)

  def plain(self, at: int) -> str:
    """A member's line where the output is not a terminal."""
    one, member = self.statuses[at], self._members[at]
    parts = [f'member {one.member}: {one.state}']
    if one.step is not None:
      parts.append(f'step {one.step:,}/{one.num_steps:,}')
    if one.state == 'running' and one.rate is not None:
      parts.append(f'{one.rate:,.0f} ex/s')
    if one.task_loss is not None:
      parts.append(f'loss {number(one.task_loss)}')
    return ', '.join(parts) + self._note + _restarts(member)

  def _seconds_left(self) -> int | None:
    """Time to the last end; a member without a pace counts as the slowest."""
    now = time.monotonic()
    paces = {}
    for one in self.statuses:
      since, first = self._began.get(one.member, (now, 0))
      step = one.step or 0
      if now > since and step > first:
        paces[one.member] = (now - since) / (step - first)
    left = [
      (one.num_steps - _steps(one))
      * paces.get(one.member, max(paces.values(), default=0))
      for one, member in zip(self.statuses, self._members, strict=True)
      if not member.is_over
    ]
    return round(max(left)) if left and paces else None


def _state(member: Member, told: str) -> str:
  if member.is_over:
    return member.end
  if member.is_waiting:
    return 'restarting'
  if member.is_stopping:
    return 'stopping'
  return told if told in _TOLD else 'starting'


def _steps(one: Status) -> int:
  return one.num_steps if one.state == 'done' else one.step or 0


def _ages(peers: str) -> str:
  """Turns '0: old, 1: 251, …' into '251…257, 2 old'."""
  told = [one.partition(': ')[2] for one in peers.split(', ') if one]
  ages = sorted(int(what) for what in told if what.lstrip('-').isdecimal())
  others = collections.Counter(
    what for what in told if not what.lstrip('-').isdecimal()
  )
  parts = ['…'.join(map(str, sorted({*ages[:1], *ages[-1:]})))] if ages else []
  parts += [f'{count} {why}' for why, count in others.items()]
  return ', '.join(parts)


def _restarts(member: Member) -> str:
  if not member.restarts:
    return ''
  return f', {member.restarts} restart{"s" * (member.restarts > 1)}'


def run_locally(
  picture: Picture,
  members: Sequence[Member],
  console: Console,
  stop: list[int],
  plain_interval_seconds: float = 30.0,
) -> int:
  """Starts the members and looks after them until the last has ended.

  Args:
    picture: of these members.
    members: to start.
    console: shows a live table on a terminal, plain lines elsewhere.
    stop: gets the numbers of signals: the first stops with checkpoints, the
      second kills.
    plain_interval_seconds: between two plain lines of each member.

  Returns:
    The exit status.

  Raises:
    UserError: if a member was refused before any had made a step; all are
      stopped then.
  """
  refused, signals, looked = '', 0, time.monotonic()
  with contextlib.ExitStack() as stack:
    stack.callback(_close, members)  # Members must not outlive an error.
    show = stack.enter_context(_shown(picture, console, plain_interval_seconds))
    while not all(member.is_over for member in members):
      for member in members:
        sentence = member.step()
        if not sentence or refused:
          continue
        if member.end == 'refused' and not picture.has_moved:
          refused = sentence
          _stop(members)
        else:
          say(console, sentence)
      if len(stop) > signals:
        say(
          console,
          'Killing the members …'
          if signals
          else 'Stopping the members, each with a checkpoint; '
          'a second signal kills them …',
        )
        _stop(members, kill=signals > 0)
        signals += 1
      if time.monotonic() - looked > _LOOK_SECONDS:
        looked = time.monotonic()
        picture.look()
        if not refused:
          show()
      time.sleep(_POLL_SECONDS)
    if refused and not stop:
      raise UserError(refused)
    picture.look()
    show()
  console.print(picture.table(console))
  if stop:
    say(console, 'Stopped; the same command goes on from there.')
    return 128 + stop[0]
  ends = {member.end for member in members}
  if ends == {'done'}:
    return 0
  if not ends <= {'done', 'diverged'}:
    say(console, 'The same command goes on with members that are not done.')
  return 2 if 'refused' in ends else 1


@contextlib.contextmanager
def _shown(
  picture: Picture, console: Console, interval_seconds: float
) -> Iterator[Callable[[], None]]:
  """Yields a function that shows the members anew."""
  if console.is_terminal:
    with Live(
      picture.table(console, is_live=True),
      console=console,
      auto_refresh=False,
      transient=True,
    ) as live:
      yield lambda: live.update(
        picture.table(console, is_live=True), refresh=True
      )
    return
  printed = time.monotonic()
  before = dict.fromkeys(range(len(picture.statuses)))

  def show() -> None:
    nonlocal printed
    is_time = time.monotonic() - printed > interval_seconds
    for at, one in enumerate(picture.statuses):
      has_changed = before[at] != one.state and one.state in _NEWS
      before[at] = one.state
      if is_time or has_changed:
        say(console, picture.plain(at))
    if is_time:
      printed = time.monotonic()
      say(console, picture.line())

  yield show


def _stop(members: Sequence[Member], kill: bool = False) -> None:
  for member in members:
    member.stop(kill)


def _close(members: Sequence[Member]) -> None:
  """Stops members that still run, and waits for them."""
  _stop(members)
  for member in members:
    member.wait()
