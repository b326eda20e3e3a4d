"""Shows what each member of a run is doing, one line a member.

  python -m scripts.status WORKDIR [--watch SECONDS]

It works during a run and after it, for one process that trains all members and
for a process a member. It only reads: provenance, the last rows, leases, and
the names in the exchange folder. Ages of files are by this host's clock. With
--watch the table is renewed until Ctrl-C, or until every member is done, has
diverged or has died on purpose. While the first of two phases is at work, the
table shows its members.

running: a process gives signs of life. dead: it should, but does not; its
command resumes it. unclear: its last sign of life is in the future; its command
waits until it knows. stopped: by a signal, with a checkpoint. elsewhere: at
work on the same exchange folder, with another workdir. died: on purpose, as
fault.kind says. taught: done, and the second phase has not begun.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from rich import box
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from codistill.exchange.folder.lease import is_held, read_lease
from experiments.errors import UserError, positive
from experiments.paths import FIRST_PHASE, local_path
from experiments.record import Record
from experiments.runs import (
  Run,
  death_of,
  label_of,
  members_of,
  read_runs,
  some_run,
)
from experiments.summary import number

# The rows of a member that its rate and loss are taken from.
LAST_ROWS = 20
# Bytes of rows to read for a member; a row takes about 400.
_TAIL_BYTES = 64 << 10
_SECOND_LOOK_S = 0.2
_OVER = ('done', 'diverged', 'died')
_STATES = {'interrupted': 'stopped', 'done': 'done', 'diverged': 'done'}
Row = dict[str, Any]


class LeaseStatus(NamedTuple):
  """What a lease tells a reader.

  Attributes:
    incarnation: the life of the job that it is from; None if nobody knows.
    alive: whether a process holds it and gives signs of life; None if the time
      of the last sign does not tell.
    text: holder and time of the last sign; 'free', 'missing' or 'unreadable'.
  """

  incarnation: int | None
  alive: bool | None
  text: str


class Status(NamedTuple):
  """A member, as its files show it; None or '' stands for unknown.

  Attributes:
    member: its number.
    network: its network's name, if members have different ones.
    state: running, stopped, done, diverged, died, dead, unclear, elsewhere,
      not started or taught.
    step: updates it has rows of.
    num_steps: updates in all.
    rate: examples a second over the last train rows, evaluations included.
    task_loss: φ in nats, mean over the last train rows.
    peers: ages of its peers at the last update, or why they were left out.
    failed_loads: publications it could not read, since its process began.
    incarnation: the life of its job.
    lease: who holds it, and the age of the last heartbeat.
    published: newest publication that others can read, and its age.
  """

  member: int
  network: str
  state: str
  step: int | None
  num_steps: int
  rate: float | None
  task_loss: float | None
  peers: str
  failed_loads: int | None
  incarnation: int | None
  lease: str
  published: str


def last_rows(path: pathlib.Path, num_bytes: int) -> list[Row]:
  """The rows in the last bytes of a file; [] if there is no such file.

  Lines that are not whole are left out: the first one begins before, and the
  last one may be half written.
  """
  try:
    with open(path, 'rb') as file:
      file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
      lines = file.read().split(b'\n')
  except FileNotFoundError:
    return []
  rows = []
  for line in lines:
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(row, dict):
      rows.append(row)
  return rows


def read_status(workdir: pathlib.Path) -> list[Status]:
  """All members of a run, as they are now, or of its first phase before.

  Raises:
    UserError: as `read_runs`.
    OSError: if something is there and cannot be read.
  """
  folder, note = phase_of(workdir)
  statuses = _read_once(folder)
  if any(one.state == 'dead' for one in statuses):
    # They may have begun or ended between a look at their lease and the rest.
    time.sleep(_SECOND_LOOK_S)
    statuses = _read_once(folder)
  if note and {one.state for one in statuses} <= {'done', 'died'}:
    statuses = [one._replace(state='taught') for one in statuses]
  return statuses


def phase_of(workdir: pathlib.Path) -> tuple[pathlib.Path, str]:
  """The folder of a run, or of its first phase before, and a note if so."""
  first = workdir / FIRST_PHASE
  began = [any(one.glob('run*.json')) for one in (workdir, first)]
  if began == [False, True]:
    return first, ', the first of two phases'
  return workdir, ''


def _read_once(workdir: pathlib.Path) -> list[Status]:
  runs = read_runs(workdir)
  members = members_of(runs)
  some = some_run(runs)
  exchange = _exchange_folder(workdir, some)
  leases, rows = {}, {}
  for process in runs:
    suffix = '' if process is None else f'-{process}'
    leases[process] = _read_lease(workdir / f'lease{suffix}.json')
    rows[process] = last_rows(
      Record(workdir, suffix).rows_path,
      _TAIL_BYTES * (len(members) if process is None else 1),
    )
  statuses = []
  for member in members:
    process = None if None in runs else member
    if process in runs:
      status = _begun(
        member, runs[process], rows[process], leases[process], exchange
      )
    else:
      status = _not_begun(member, some, exchange)
    statuses.append(status)
  return statuses


def _begun(
  member: int,
  run: Run,
  rows: Sequence[Row],
  lease: LeaseStatus,
  exchange: epath.Path | None,
) -> Status:
  trained = [
    row
    for row in rows
    if row.get('member') == member and row.get('kind') == 'train'
  ][-LAST_ROWS:]
  last = trained[-1] if trained else {}
  # One that diverged or died long ago may have no row among the last ones.
  step = last.get('step', 0)
  diverged = run.get('diverged', {}).get(str(member))
  death = death_of(run, member)
  if diverged:
    state, step = 'diverged', step or diverged['step']
  elif death is not None and (
    run['status'] == 'done'
    or step == death
    or any(row.get('step', 0) > death for row in rows)
  ):
    state, step = 'died', death
  elif run['status'] == 'running':
    state = {True: 'running', False: 'dead', None: 'unclear'}[lease.alive]
  else:
    state = _STATES.get(run['status'], run['status'])
  losses = [
    row['task_loss'] for row in trained if row.get('task_loss') is not None
  ]
  life = lease.incarnation
  if exchange is not None:
    life = _read_lease(exchange / str(member) / 'lease.json').incarnation
  return Status(
    member=member,
    network=_network(member, run),
    state=state,
    step=step,
    num_steps=run['config']['num_steps'],
    rate=_rate(trained),
    task_loss=statistics.fmean(losses) if losses else None,
    peers=_peers(last),
    failed_loads=last.get('failed_loads'),
    incarnation=life,
    lease=lease.text,
    published=_newest_publication(exchange, member),
  )


def _not_begun(member: int, run: Run, exchange: epath.Path | None) -> Status:
  """A member without files here; it may work from another workdir."""
  lease = LeaseStatus(None, False, '')
  if exchange is not None:
    lease = _read_lease(exchange / str(member) / 'lease.json')
  return Status(
    member=member,
    network=_network(member, run),
    state='elsewhere' if lease.alive else 'not started',
    step=None,
    num_steps=run['config']['num_steps'],
    rate=None,
    task_loss=None,
    peers='',
    failed_loads=None,
    incarnation=lease.incarnation if lease.alive else None,
    lease=lease.text if lease.alive else '',
    published=_newest_publication(exchange, member),
  )


def _network(member: int, run: Run) -> str:
  networks = run['config']['codistill'].get('member_models')
  return networks[member] if networks else ''


def _rate(trained: Sequence[Row]) -> float | None:
  """Examples a second from the first of these rows to the last."""
  if len(trained) < 2:
    return None
  first, last = trained[0], trained[-1]
  seconds = last['seconds'] - first['seconds']
  examples = last['examples_seen'] - first['examples_seen']
  return examples / seconds if seconds > 0 else None


def _peers(row: Row) -> str:
  """Formats a train row's peers as '1: 12, 2: old'."""
  ages = zip(row.get('peers') or (), row.get('peer_ages') or (), strict=True)
  left_out = (row.get('left_out') or {}).items()
  told = {**dict(ages), **{int(peer): why for peer, why in left_out}}
  return ', '.join(f'{peer}: {what}' for peer, what in sorted(told.items()))


def _exchange_folder(workdir: pathlib.Path, run: Run) -> epath.Path | None:
  """The folder in which members meet, if any."""
  codistill = run['config']['codistill']
  if codistill.get('exchange') != 'checkpoints':
    return None
  return epath.Path(codistill.get('exchange_dir') or workdir / 'exchange')


def _read_lease(path: epath.PathLike) -> LeaseStatus:
  path = epath.Path(path)
  try:
    if not path.exists():
      return LeaseStatus(None, False, 'missing')
    found = read_lease(path)
    alive = is_held(path, found, probe=False)
    age = time.time() - path.stat().mtime
  except FileNotFoundError:
    return LeaseStatus(None, False, 'missing')
  # Somebody may have edited it by hand.
  except (OSError, TypeError, ValueError):
    found = {}
  if not found:
    return LeaseStatus(None, False, 'unreadable')
  text = 'free'
  if found['held']:
    told = _age(age) if age >= 0 else f'{_age(-age)} from now'
    text = f'{found["host"]} {found["pid"]}, {told}'
  return LeaseStatus(found['incarnation'], alive, text)


def _newest_publication(exchange: epath.Path | None, member: int) -> str:
  """Step and age of a member's newest publication that is complete."""
  if exchange is None:
    return ''
  written = {}
  try:
    for path in (exchange / str(member)).iterdir():
      if path.name.isdecimal():
        try:
          stat = path.stat()
        except OSError:
          continue  # Pruned since the folder was listed, or no publication.
        if stat.is_directory:
          written[int(path.name)] = stat.mtime
  except OSError:
    return ''
  if not written:
    return ''
  # Not the greatest step: a new life may have resumed from an earlier one.
  step = max(written, key=lambda step: (written[step], step))
  return f'{step:,}, {_age(time.time() - written[step])}'


def _age(seconds: float) -> str:
  """'17 s', '3 min', …; never negative, even if clocks differ."""
  for size, unit in ((86_400, 'd'), (3_600, 'h'), (60, 'min')):
    if seconds >= 2 * size:
      return f'{seconds // size:.0f} {unit}'
  return f'{max(seconds, 0):.0f} s'


def status_table(title: str, statuses: Sequence[Status]) -> Table:
  """A line for each member."""
  table = Table(
    title=title,
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    caption=(
      f'ex/s, loss (φ, nats): over the last {LAST_ROWS} train rows; peers: age '
      'in steps, or why left out; failed: loads; life: incarnation; lease: '
      'host, process, age of its heartbeat; newest: publication, its age'
    ),
  )
  for name in ('member', 'state'):
    table.add_column(name)
  for name in ('step', 'ex/s', 'loss'):
    table.add_column(name, justify='right', no_wrap=True)
  table.add_column('peers')
  for name in ('failed', 'life'):
    table.add_column(name, justify='right')
  for name in ('lease', 'newest'):
    table.add_column(name)
  for one in statuses:
    cells = (
      f'{one.member} {one.network}'.rstrip(),
      one.state,
      None if one.step is None else f'{one.step:,}/{one.num_steps:,}',
      None if one.rate is None else f'{one.rate:,.0f}',
      number(one.task_loss),
      one.peers,
      one.failed_loads,
      one.incarnation,
      one.lease,
      one.published,
    )
    table.add_row(
      *(Text('–' if cell in (None, '') else str(cell)) for cell in cells)
    )
  return table


def _table(workdir: pathlib.Path) -> tuple[Table, bool]:
  """The table now, and whether it is final."""
  statuses = read_status(workdir)
  folder, note = phase_of(workdir)
  table = status_table(label_of(some_run(read_runs(folder))) + note, statuses)
  return table, all(one.state in _OVER for one in statuses)


def watch(workdir: pathlib.Path, console: Console, seconds: float) -> None:
  """Shows the table anew until it is final."""
  with Live(console=console, auto_refresh=False) as live:
    while True:
      table, is_final = _table(workdir)
      if console.is_terminal:
        live.update(table, refresh=True)
      else:
        _print(table, console)
      if is_final:
        return
      time.sleep(seconds)


def _print(table: Table, console: Console) -> None:
  """Prints a table, one line a member if the output is not a terminal."""
  if not console.is_terminal:
    options = console.options.update(max_width=1_000)
    needed = Measurement.get(console, options, table).maximum
    console.width = max(console.width, needed)
  console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table, once or again and again."""
  parser = argparse.ArgumentParser(
    prog='scripts.status',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=local_path)
  parser.add_argument('--watch', metavar='SECONDS', type=positive)
  arguments = parser.parse_args(argv)
  console = Console()
  try:
    if arguments.watch is not None:
      watch(arguments.workdir, console, arguments.watch)
    else:
      _print(_table(arguments.workdir)[0], console)
  except KeyboardInterrupt:
    return 0
  # Without the package for an exchange folder in a bucket.
  except (UserError, OSError, ImportError) as error:
    print(f'scripts.status: {error}', file=sys.stderr)
    return 1
  except (AttributeError, LookupError, TypeError, ValueError) as error:
    print(
      f'scripts.status: {arguments.workdir} does not contain what a run '
      f'leaves ({error!r}); restore it from a copy',
      file=sys.stderr,
    )
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())
