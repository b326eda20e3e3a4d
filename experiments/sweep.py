r"""Runs every point of a config's `sweep()` with several seeds.

  python -m experiments.sweep --config=CONFIG [--seeds=K]
    [--workdir=DIR] [--jobs=N] [--launcher=local|print|slurm]
    [--slurm KEY=VALUE …] [--config.any.key=value …]
    [--allow-code-change] [--tensorboard] [--wandb]

Each run is a process of its own, `python -m experiments.run …`, in the folder
<workdir>/<point>/seed-<k>. The same command continues a sweep: finished runs
are left alone, interrupted ones continue from their checkpoints, failed ones
are tried again. Flags of experiments.run go to every run. A key goes to the
runs that read it: codistill.reload_interval_steps does not go to those without
peers.

The launcher local runs N at a time; print prints the commands of the runs that
are left; slurm submits these as one array, N at a time (--slurm partition=gpu,
--slurm time=120, …, with submitit's names without slurm_). Exit status: 0 all
done, 1 a run failed or diverged, 2 a command that makes no sense, 128 + n
stopped by signal n.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments import config as config_lib
from experiments import config_file, given, results
from experiments.errors import UserError
from experiments.paths import PATH_KEYS, local_path
from experiments.processes import (
  ROOT,
  given_keys,
  last_words,
  parameters,
  say,
  start,
  stop_signals,
)
from experiments.record import (
  code_version,
  config_hash,
  why_unknown,
)
from experiments.runs import read_checked
from experiments.slurm import LISTS, submit
from experiments.workdir import check_config, is_running

_POLL_SECONDS = 0.5
# Longer than any row.
_TAIL_BYTES = 8_192
_FINISHED = ('done', 'diverged')
_OVER = (*_FINISHED, 'failed')


@dataclasses.dataclass(frozen=True)
class Run:
  """One point of a sweep with one seed.

  Attributes:
    point: its name, such as 'reload_interval_steps=10'.
    seed: the config's.
    num_steps: updates of each member.
    workdir: its folder.
    command: the command that makes it.
    recipe: of its provenance: the config, its hash, and what it overrides.
  """

  point: str
  seed: int
  num_steps: int
  workdir: pathlib.Path
  command: tuple[str, ...]
  recipe: Mapping[str, Any] = dataclasses.field(compare=False)

  @property
  def log(self) -> pathlib.Path:
    """The output of all attempts."""
    return self.workdir / 'log.txt'


class State(NamedTuple):
  """How far a run is: its status, its last step, and why it failed."""

  status: str
  step: int
  why: str = ''


def plan(
  reference: str, seeds: int, workdir: pathlib.Path, extra: Sequence[str]
) -> list[Run]:
  """The runs of a sweep, seed by seed, so that early results cover all points.

  Args:
    reference: of the config, as `config_file.find` reads it.
    seeds: how many, from 0 on.
    workdir: of the whole sweep.
    extra: flags for every run, and `--config.key=value` for those that read it.

  Raises:
    UserError: for an unknown config, variant or key, a key that the sweep sets,
      or one that none of its points reads.
  """
  points = config_lib.points(reference)
  keys = given_keys(extra)
  base = config_lib.load(reference)
  config_lib.check_keys(base, keys)
  for key in ('seed', *(key for point in points for key in point)):
    if key in keys:
      raise UserError(
        f'--config.{key} is what the sweep varies; leave it out'
        + (', and choose --seeds=K instead' if key == 'seed' else '')
      )
  named = {results.point_name(point): point for point in points}
  if len(named) < len(points):
    raise UserError(
      f'two points of sweep() of {reference} share a name, which folders of '
      'runs need; leave one of them out, or set one more key in it'
    )
  unread = {}
  for name, point in named.items():
    config = config_lib.load_as_run(reference, point, keys)
    given.check_read(config, point)
    unread[name] = given.unread(config, keys)
  for key in set.intersection(*map(set, unread.values())):
    raise UserError(next(iter(unread.values()))[key])
  return [
    _make_run(
      reference,
      seed,
      point,
      {key: text for key, text in keys.items() if key not in unread[name]},
      workdir / name / f'seed-{seed}',
      [flag for flag in extra if not flag.startswith('--config.')],
    )
    for seed in range(seeds)
    for name, point in named.items()
  ]


def _make_run(
  reference: str,
  seed: int,
  point: Mapping[str, Any],
  keys: Mapping[str, str],
  path: pathlib.Path,
  flags: Sequence[str],
) -> Run:
  """The run of a point with a seed in the folder `path`."""
  file, base = config_file.find(reference), config_lib.load(reference)
  config = config_lib.load_as_run(reference, {**point, 'seed': seed}, keys)
  settings, named = (results.flat(c.to_dict()) for c in (config, base))
  # A path is meant from here, and the run starts in the repository.
  paths = {
    key: settings[key]
    for key in map('.'.join, PATH_KEYS)
    if settings.get(key) and settings[key] != named[key]
  }
  changes = {'seed': seed, **point, **keys, **paths}
  return Run(
    results.point_name(point),
    seed,
    config.num_steps,
    path,
    (
      sys.executable,
      '-m',
      'experiments.run',
      f'--config={file.argument}',
      f'--workdir={path}',
      *(f'--config.{key}={value}' for key, value in changes.items()),
      *flags,
    ),
    {
      'config': config.to_dict(),
      'config_hash': config_hash(config.to_dict()),
      'overrides': config_lib.overrides(base, config),
    },
  )


def state(run: Run, mine: bool = False) -> State:
  """Reads a run's state from its folder.

  Args:
    run: the run.
    mine: its process is ours, so that no other one is looked for.
  """
  try:
    found = read_checked(run.workdir / 'run.json')
    status = found['status']
    check_config(run.workdir, found, run.recipe, anew=False)
    diverged = found.get('diverged', {}).items()
    why = '; '.join(
      f'member {who} at step {at["step"]}' for who, at in diverged
    )
    step = _last_step(run.workdir / 'rows.jsonl')
  except FileNotFoundError:
    running = not mine and is_running(run.workdir)
    return State('running' if running else 'to do', 0)
  except UserError as error:
    return State('failed', 0, str(error))
  except (OSError, ValueError, LookupError, TypeError) as error:
    return State('failed', 0, f'{run.workdir} is damaged: {error!r}')
  if status in _FINISHED:
    return State(status, run.num_steps, why)
  running = not mine and is_running(run.workdir)
  return State('running' if running else 'interrupted', step)


def _last_step(rows: pathlib.Path) -> int:
  """The step of the last whole row, found from the file's end."""
  if not rows.exists():
    return 0
  with open(rows, 'rb') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    *lines, _ = file.read().split(b'\n')
  if size > _TAIL_BYTES:
    del lines[:1]  # Cut at its start.
  return int(json.loads(lines[-1])['step']) if lines else 0


class LocalRuns:
  """Runs a sweep as processes of this machine, some at a time."""

  def __init__(self, runs: Sequence[Run], jobs: int):
    """Starts nothing yet.

    Args:
      runs: all of the sweep.
      jobs: how many at a time.
    """
    self._jobs = jobs
    self.states = {run: state(run) for run in runs}
    self._waiting = collections.deque(
      run for run in runs if self.states[run].status not in _OVER
    )
    self._processes: dict[Run, subprocess.Popen] = {}
    # Where in its log each began: a run that is started again has one log.
    self._began: dict[Run, int] = {}

  def step(self) -> bool:
    """Starts and watches processes; returns whether any run is left."""
    for run, process in list(self._processes.items()):
      status = process.poll()
      at = state(run, mine=status is None)
      if status is None:
        self.states[run] = at._replace(status='running')
        continue
      del self._processes[run]
      self.states[run] = at
      if at.status == 'running':
        # Refused, because another process is at work there, perhaps of a sweep
        # that was killed.
        self._waiting.append(run)
      elif at.status not in _OVER:
        why = last_words(run.log, status, self._began[run])
        self.states[run] = at._replace(status='failed', why=why)
    for run in self._waiting:
      self.states[run] = state(run)
    elsewhere = sum(
      self.states[run].status == 'running' for run in self._waiting
    )
    for run in list(self._waiting):
      if self.states[run].status in _OVER:
        self._waiting.remove(run)
      elif (
        self.states[run].status != 'running'
        and len(self._processes) + elsewhere < self._jobs
      ):
        self._waiting.remove(run)
        self._processes[run] = self._start(run)
    return bool(self._processes or self._waiting)

  def _start(self, run: Run) -> subprocess.Popen:
    environment = dict(os.environ)
    if self._jobs > 1:
      # Otherwise each would take three quarters of the memory of a GPU.
      environment.setdefault(
        'XLA_PYTHON_CLIENT_MEM_FRACTION', f'{0.9 / self._jobs:.2f}'
      )
    self._began[run] = run.log.stat().st_size if run.log.exists() else 0
    return start(run.command, run.log, environment)

  def stop(self, kill: bool) -> None:
    """Asks the processes to stop with a checkpoint, or kills them."""
    for process in self._processes.values():
      with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

  def close(self) -> None:
    """Stops what still runs, and waits for it."""
    self.stop(kill=False)
    for process in self._processes.values():
      process.wait()

  def wait(self) -> bool:
    """Whether any process has yet to stop."""
    for run, process in list(self._processes.items()):
      if process.poll() is not None:
        del self._processes[run]
        self.states[run] = state(run)
    return bool(self._processes)


class _Pace:
  """How much of a sweep is done, and how long the rest takes at this pace."""

  def __init__(self, states: Mapping[Run, State]):
    self._start = self._done(states)
    self._began = time.monotonic()

  def line(self, states: Mapping[Run, State]) -> str:
    """Counts, the share that is done, and the time left."""
    counts = collections.Counter(at.status for at in states.values())
    done = self._done(states)
    parts = [
      f'{counts[status]} {status}'
      for status in ('done', 'running', 'diverged', 'failed')
      if counts[status] or status in ('done', 'running')
    ]
    made, left = done - self._start, len(states) - counts['failed'] - done
    if left and made > 0:
      seconds = round((time.monotonic() - self._began) * left / made)
      parts.append(f'about {datetime.timedelta(seconds=seconds)} left')
    share = done / len(states)
    return f'{", ".join(parts)}  ({len(states)} runs, {share:.0%})'

  def _done(self, states: Mapping[Run, State]) -> float:
    """Runs that are done, with shares for steps; failed ones count nothing."""
    return sum(
      1.0
      if at.status in _FINISHED
      else min(1.0, at.step / max(1, run.num_steps)) * (at.status != 'failed')
      for run, at in states.items()
    )


def states_table(title: str, states: Mapping[Run, State]) -> Table:
  """A line per run: point, seed, state, steps, and why it failed."""
  table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  for column in ('point', 'seed', 'state', 'step', ''):
    table.add_column(
      column,
      justify='right' if column == 'step' else 'left',
      overflow='fold',
    )
  for run, at in sorted(
    states.items(), key=lambda item: (item[0].point, item[0].seed)
  ):
    table.add_row(
      Text(run.point),
      str(run.seed),
      at.status,
      f'{at.step:,}/{run.num_steps:,}',
      Text(at.why),  # Its brackets are not markup.
    )
  return table


def run_locally(
  title: str,
  runs: Sequence[Run],
  jobs: int,
  console: Console,
  stop: list[int],
  plain_interval_seconds: float = 30.0,
) -> int:
  """Runs the rest of a sweep, N at a time, and shows its progress.

  Args:
    title: of the table.
    runs: all of the sweep.
    jobs: N.
    console: a live table on a terminal, plain lines elsewhere.
    stop: gets the numbers of signals: the first stops with checkpoints, the
      second kills.
    plain_interval_seconds: between two plain lines.

  Returns:
    The exit status.
  """
  local = LocalRuns(runs, jobs)
  pace = _Pace(local.states)
  before = {run: at.status for run, at in local.states.items()}
  printed = time.monotonic()

  def picture() -> Table:
    # All runs of a long sweep would not fit on the screen.
    table = states_table(
      title,
      {r: at for r, at in local.states.items() if at.status == 'running'},
    )
    table.caption = pace.line(local.states)
    return table

  with contextlib.ExitStack() as stack:
    stack.callback(local.close)  # If this ends with an error.
    live = (
      stack.enter_context(Live(picture(), console=console, transient=True))
      if console.is_terminal
      else None
    )
    more = True
    while more and not stop:
      more = local.step()
      if live:
        live.update(picture())
      for run, at in local.states.items():
        if before[run] != at.status:
          before[run] = at.status
          say(console, f'{run.point} seed {run.seed}: {at.status} {at.why}')
      if not live and time.monotonic() - printed > plain_interval_seconds:
        printed = time.monotonic()
        say(console, pace.line(local.states))
      time.sleep(_POLL_SECONDS)
    if stop:
      say(console, 'Stopping the runs, each with a checkpoint …')
      local.stop(kill=False)
      killed = False
      while local.wait():
        if len(stop) > 1 and not killed:
          killed = True
          local.stop(kill=True)
        time.sleep(_POLL_SECONDS / 5)
  table = states_table(title, local.states)
  table.caption = pace.line(local.states)
  console.print(table)
  if stop:
    say(console, 'Stopped; the same command goes on from there.')
    return 128 + stop[0]
  return int(any(at.status != 'done' for at in local.states.values()))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='experiments.sweep',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    required=True,
    metavar='CONFIG',
    help='NAME[:variant], as python -m experiments.run --list shows them, or a '
    'path/to/file.py[:variant] or package.module[:variant] of your own',
  )
  parser.add_argument(
    '--seeds',
    type=int,
    default=1,
    metavar='K',
    help='seeds 0 to K - 1 (default: %(default)s)',
  )
  parser.add_argument(
    '--workdir',
    type=local_path,
    metavar='DIR',
    help='folder of the whole sweep (default: runs/sweeps/NAME-variant)',
  )
  parser.add_argument(
    '--jobs',
    type=int,
    default=1,
    metavar='N',
    help='runs at a time (default: %(default)s)',
  )
  parser.add_argument(
    '--launcher', choices=('local', 'print', 'slurm'), default='local'
  )
  parser.add_argument(
    '--slurm',
    action='append',
    default=[],
    metavar='KEY=VALUE',
    help='for --launcher=slurm, repeatable; time=MINUTES is required',
  )
  arguments, arguments.extra = parser.parse_known_args(argv)
  return arguments


def _sweep(arguments: argparse.Namespace, console: Console) -> int:
  for flag in ('seeds', 'jobs'):
    if getattr(arguments, flag) < 1:
      raise UserError(f'--{flag} must be at least 1')
  slurm = parameters('slurm', arguments.launcher, arguments.slurm, LISTS)
  file = config_file.find(arguments.config)
  workdir = arguments.workdir or ROOT / 'runs/sweeps' / file.stem
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'{workdir} is a file; choose another --workdir')
  runs = plan(arguments.config, arguments.seeds, workdir, arguments.extra)
  if arguments.launcher != 'print' and code_version(ROOT)['dirty'] is not False:
    why = why_unknown(ROOT) or 'there are uncommitted changes'
    say(console, f'collect will refuse the rows ({why}).')
  if arguments.launcher == 'local':
    with stop_signals() as stop:
      return run_locally(file.label, runs, arguments.jobs, console, stop)
  states = {run: state(run) for run in runs}
  left = [
    run
    for run in runs
    if states[run].status not in (*_FINISHED, 'running', 'failed')
  ]
  failed = [at.why for at in states.values() if at.status == 'failed']
  for why in failed:
    print(f'experiments.sweep: {why}', file=sys.stderr)
  if arguments.launcher == 'print':
    for run in left:
      print(shlex.join(run.command))
    return int(bool(failed))
  if left:
    commands = [run.command for run in left]
    ids = submit(commands, arguments.jobs, workdir, slurm)
    say(console, f'submitted {len(left)} runs: {ids[0]} to {ids[-1]}')
    say(console, 'Before you submit again, check that none of them is queued.')
  console.print(states_table(file.label, states))
  return int(bool(failed))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  arguments = _parse(argv)
  try:
    return _sweep(arguments, Console())
  except (UserError, OSError) as error:
    print(f'experiments.sweep: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
