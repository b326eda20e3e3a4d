"""Faults done to real runs on purpose, and what came of each.

  python -m scripts.chaos [NAME … | all] [--seed=0] [--kills=20] [--keep DIR]
    [--markdown FILE]

Processes that are killed, stopped or started late; an exchange folder that is
read-only, gone, moved or full of garbage; publications that are damaged or of
another time; disks that are slow. A line a fault at the end: how it was done,
what was lost, how long it took until all was well again. Exit status 1 if
something was lost that must not be, or did not come back.

Each process trains one member of `imagenet_codistill:smoke` on one CPU device.
Everything is drawn from the seed, but not when the machine does what. Every
wait has a bound; all faults together take five to ten minutes on two cores.
"""

from __future__ import annotations

import abc
import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from codistill import precision, publication, topology
from codistill.checkpoint_exchange import CheckpointExchange
from codistill.publication import Notes
from codistill.record import read_rows, read_run
from scripts.status import last_rows

ROOT = pathlib.Path(__file__).parent.parent
# Seconds: the bound of every wait, and between two looks. A process may take
# half a minute to its first row where many share a core.
LONG_S = 180.0
_LOOK_S = 0.05
_DAY_S = 86_400.0
_INTERVAL_STEPS = 50
Row = dict[str, Any]
PyTree = Any


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
  condition: Callable[[], Any], what: str, jobs: Sequence[Job] = ()
) -> float:
  """Waits, within bounds, and not for processes that have ended.

  Returns:
    For how many seconds.

  Raises:
    FailedError: if it did not come true in time, or one of `jobs` has ended.
  """
  began = time.monotonic()
  while not condition():
    for job in jobs:
      expect(job.process.poll() is None, f'{what}: {job.ended()}')
    expect(time.monotonic() - began < LONG_S, f'{what}: not in {LONG_S:g} s')
    time.sleep(_LOOK_S)
  return time.monotonic() - began


# Processes.

# Delays under what reads and writes publications, in a process of its own:
# load=2 or write=2 for two seconds each time.
_SLOW = """
import runpy, sys, time
from codistill import publication

name, _, seconds = sys.argv.pop(1).partition('=')
real = getattr(publication, name)

def slow(*arguments):
  time.sleep(float(seconds))
  return real(*arguments)

setattr(publication, name, slow)
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


class Job:
  """One life of a member's process; what it says goes to a file."""

  def __init__(
    self, line: Sequence[str], rows: pathlib.Path, log: pathlib.Path
  ):
    """Starts it.

    Args:
      line: the command.
      rows: the file that it writes or goes on with.
      log: a file that is not there yet.
    """
    self._rows, self._log = rows, log
    self._found = _inode(rows)
    self.began = time.monotonic()
    self.seconds_to_row: float | None = None
    with open(log, 'wb') as out:
      self.process = subprocess.Popen(
        line,
        cwd=ROOT,
        env={
          'JAX_PLATFORMS': 'cpu',
          'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache/jax'),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
          **os.environ,
          # A log that ends where its process was killed.
          'PYTHONUNBUFFERED': '1',
        },
        stdout=out,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for this process, which then kills that one.
        start_new_session=True,
      )

  def said(self) -> str:
    """All that it has printed so far."""
    return self._log.read_text(errors='replace')

  def ended(self) -> str:
    """How, for errors: status, and the last line that it printed."""
    lines = self.said().strip().splitlines() or ['']
    return f'ended with status {self.process.returncode}: {lines[-1][:200]}'

  def start_step(self) -> int:
    """Where it went on, as it says itself; 0 if it began anew."""
    match = re.search(r'goes on from step ([\d,]+)', self.said())
    return int(match[1].replace(',', '')) if match else 0

  def step(self) -> int:
    """The last update with a row, this life's or an earlier one's."""
    rows = last_rows(self._rows, 8 << 10)
    steps = [row['step'] for row in rows if row.get('kind') == 'train']
    return max(steps, default=0)

  def trained(self) -> int:
    """Updates with a row that are this life's own."""
    # A life that goes on replaces the file before it adds to it.
    if _inode(self._rows) in (None, self._found):
      return 0
    steps = max(0, self.step() - self.start_step())
    if steps and self.seconds_to_row is None:
      self.seconds_to_row = time.monotonic() - self.began
    return steps

  def wait(self, status: int, what: str) -> float:
    """Waits for its end; returns seconds."""
    seconds = until(lambda: self.process.poll() is not None, what)
    found = self.process.returncode
    expect(found == status, f'{what}: {self.ended()}, not {status}')
    return seconds

  def kill(self) -> None:
    """As kill -9, which no process survives."""
    self.process.kill()
    self.process.wait()

  def stop(self) -> float:
    """Stops it as Ctrl-C does, after a checkpoint; returns seconds."""
    self.process.terminate()
    return self.wait(128 + signal.SIGTERM, 'stopping')

  def complaint(self) -> str:
    """The one sentence that a process ends with that cannot go on."""
    lines = [line for line in self.said().splitlines() if 'run: ' in line]
    expect(len(lines) == 1, f'{len(lines)} sentences instead of one')
    expect('Traceback' not in self.said(), 'a traceback beside the sentence')
    return lines[0]


def _inode(path: pathlib.Path) -> int | None:
  return path.stat().st_ino if path.exists() else None


class Run:
  """The processes of one run, one a member, in one workdir."""

  def __init__(
    self, stage: Stage, workdir: pathlib.Path, *, members: int, **config: Any
  ):
    """Starts nothing.

    Args:
      stage: kills at its end what is started here.
      workdir: of the run.
      members: N.
      **config: keys with their values; __ for a dot.
    """
    self.workdir = workdir
    self._stage = stage
    config = {
      'num_devices': 1,
      'num_steps': 1_000_000,
      'checkpoint_interval_steps': 200,
      'eval_interval_steps': 1_000,
      # A program of its own for each number, otherwise.
      'schedule__warmup_cosine__num_steps': 100,
      'codistill__members': members,
      'codistill__reload_interval_steps': _INTERVAL_STEPS,
      'codistill__poll_interval_s': 0.1,
      'codistill__lease_timeout_s': 8.0,
      **config,
    }
    self._line = [
      *('--config=imagenet_codistill:smoke', f'--workdir={workdir}'),
      # Whoever edits this code meanwhile must not stop a restart.
      '--allow-code-change',
      *(f'--config.{k.replace("__", ".")}={v}' for k, v in config.items()),
    ]
    self.jobs: dict[int, Job] = {}

  def start(self, member: int, *arguments: str, slow: str | None = None) -> Job:
    """Starts a member's process, as often as one likes; the last one counts."""
    how = ['-m', 'experiments.run'] if slow is None else ['-c', _SLOW, slow]
    line = [sys.executable, *how, *self._line, f'--member={member}', *arguments]
    job = self._stage.start(line, self.rows_path(member))
    self.jobs[member] = job
    return job

  def rows_path(self, member: int) -> pathlib.Path:
    """Of one member's rows."""
    return self.workdir / f'rows-{member}.jsonl'

  def until_trained(self, member: int, steps: int = 1) -> float:
    """Waits for so many updates of a member's present life."""
    job = self.jobs[member]
    return until(
      lambda: job.trained() >= steps, f'{steps} steps of member {member}', [job]
    )

  def finish(self) -> None:
    """Waits until all are done."""
    for member, job in self.jobs.items():
      job.wait(0, f'member {member} to its end')

  def check_rows(self, member: int, num_steps: int | None = None) -> list[Row]:
    """The train rows of a member, which are one for each step, in order.

    Args:
      member: whose.
      num_steps: how many it must have, and a final score; None: as it may be.

    Raises:
      FailedError: if one is missing, twice there, or taught by a copy that
        nobody published.
    """
    rows = read_rows(self.rows_path(member))
    train = [row for row in rows if row['kind'] == 'train']
    steps = [row['step'] for row in train]
    wanted = list(range(1, (num_steps or len(steps)) + 1))
    expect(steps == wanted, f'rows of member {member} are not 1, 2, 3, …')
    for row in train:
      for age in row['peer_ages']:
        published = row['step'] - 1 - age
        expect(
          published >= 0 and published % _INTERVAL_STEPS == 0,
          f'step {row["step"]} of member {member} was taught by a copy of step '
          f'{published}, which is not published',
        )
    if num_steps is not None:
      final = [row['member'] for row in rows if row['kind'] == 'final']
      expect(final == [member], f'final rows of member {member}: {final}')
      status = read_run(self.workdir / f'run-{member}.json')['status']
      expect(status == 'done', f'member {member} is {status}')
    return train


class Tail:
  """The rows that a file gets from now on."""

  def __init__(self, path: pathlib.Path):
    """Begins at the end of the file."""
    self._path, self._at = path, path.stat().st_size

  def read(self) -> list[Row]:
    """The rows since the last call."""
    with open(self._path, 'rb') as file:
      file.seek(self._at)
      whole, newline, _ = file.read().rpartition(b'\n')
    self._at += len(whole + newline)
    return [json.loads(line) for line in whole.splitlines()]


# Two members that meet in a folder: in this process, or in two of their own.


class World(abc.ABC):
  """Two members to whose folder something is done.

  Attributes:
    exchange: the folder.
  """

  exchange: pathlib.Path

  @abc.abstractmethod
  def go_on(self, event: str | None = None) -> None:
    """Waits until both have trained on, and met with an event meanwhile."""

  @abc.abstractmethod
  def recover(self) -> float:
    """Waits until each has loaded what the other publishes from now on.

    Returns:
      For how many seconds.
    """

  @abc.abstractmethod
  def events(self) -> collections.Counter[str]:
    """How many events of each kind there were since this was last asked."""

  def missed(self) -> str:
    """What went wrong since this was last asked."""
    events = self.events()
    kinds = ('failed publish', 'skip', 'failed load')
    told = [f'{events[kind]} × {kind}' for kind in kinds if events[kind]]
    return ', '.join(told) or 'nothing'


class Pair(World):
  """Two processes, which train for as long as one likes."""

  def __init__(self, run: Run):
    """Starts them, and waits until each has seen the other."""
    self.exchange = run.workdir / 'exchange'
    self.run = run
    for member in (0, 1):
      run.start(member)
    for member in (0, 1):
      run.until_trained(member)
    self._tails = [Tail(run.rows_path(member)) for member in (0, 1)]
    self._rows: list[list[Row]] = [[], []]
    self.recover()
    self.events()

  @property
  def jobs(self) -> list[Job]:
    """Both."""
    return list(self.run.jobs.values())

  def go_on(self, event: str | None = None) -> None:
    marks = self._marks()

    def done() -> bool:
      self._read()
      return all(
        len([row for row in rows[mark:] if row['kind'] == 'train']) >= 50
        and event in (None, *(row.get('event') for row in rows[mark:]))
        for rows, mark in zip(self._rows, marks, strict=True)
      )

    until(done, f'both to train on with {event or "nothing"}', self.jobs)

  def recover(self) -> float:
    steps = [job.step() for job in self.jobs]
    marks = self._marks()

    def done() -> bool:
      self._read()
      return all(
        any(
          row.get('event') == 'load' and row['publication'] > steps[1 - member]
          for row in self._rows[member][marks[member] :]
        )
        for member in (0, 1)
      )

    return until(done, 'both to load what is new', self.jobs)

  def events(self) -> collections.Counter[str]:
    self._read()
    found = collections.Counter(
      row['event'] for rows in self._rows for row in rows if 'event' in row
    )
    self._rows = [[], []]
    return found

  def _marks(self) -> list[int]:
    """From where on rows are of now."""
    self._read()
    return [len(rows) for rows in self._rows]

  def _read(self) -> None:
    for rows, tail in zip(self._rows, self._tails, strict=True):
      rows += tail.read()


class InProcess(World):
  """Two exchanges without training: weights tell whose they are, and when."""

  def __init__(self, folder: pathlib.Path):
    """Opens nothing yet.

    Args:
      folder: theirs; need not be there.
    """
    self.exchange = folder
    self.members = [make_exchange(folder, member) for member in (0, 1)]
    self.step = 0
    self._events: collections.Counter[str] = collections.Counter()

  def __enter__(self) -> InProcess:
    with contextlib.ExitStack() as stack:
      for exchange in self.members:
        stack.enter_context(exchange)
      self._stack = stack.pop_all()
    self.recover()
    self.events()
    return self

  def __exit__(self, *exception: object) -> None:
    self._stack.__exit__(*exception)

  def go_on(self, event: str | None = None) -> None:
    began, seen = self.step, [set(), set()]

    def done() -> bool:
      self._take_step(seen)
      return self.step >= began + 20 and all(
        event is None or event in events for events in seen
      )

    until(done, f'both to go on with {event or "nothing"}')

  def recover(self) -> float:
    began = self.step

    def done() -> bool:
      self._take_step([set(), set()])
      copies = [look(self.members[member], member) for member in (0, 1)]
      return all(copy is not None and copy > began for copy in copies)

    return until(done, 'both to load what is new')

  def events(self) -> collections.Counter[str]:
    found, self._events = self._events, collections.Counter()
    return found

  def _take_step(self, seen: Sequence[set[str]]) -> None:
    self.step += 1
    for member, exchange in enumerate(self.members):
      look(exchange, member)
      exchange.offer(member, self.step, weights(member, self.step))
      events = [event['event'] for event in exchange.account(member).events]
      seen[member].update(events)
      self._events.update(events)


def weights(member: int, step: int) -> PyTree:
  """Weights that no other member has at any step."""
  numbers = np.random.default_rng((member, step))
  return {
    'params': {
      'kernel': jnp.asarray(numbers.normal(size=(64, 16)), jnp.float32),
      'bias': jnp.asarray(numbers.normal(size=16), jnp.float32),
    },
    'batch_stats': {'mean': jnp.asarray(numbers.normal(size=16), jnp.float32)},
  }


def make_exchange(folder: pathlib.Path, member: int) -> CheckpointExchange:
  """One of two members that publish at every step."""
  return CheckpointExchange(
    folder,
    topology.make_topology('all', 2),
    members=(member,),
    like=weights(0, 0),
    reload_interval_steps=1,
    poll_interval_s=0.02,
    keep_s=1.0,
    lease_timeout_s=4.0,
  )


def look(exchange: CheckpointExchange, member: int) -> int | None:
  """The step of the copy that would teach a member now, if one would.

  Raises:
    FailedError: if its weights are not those of that step.
  """
  for peer in exchange.freshest(member, 1):
    same = jax.tree.map(
      np.array_equal, peer.variables, weights(peer.member, peer.step)
    )
    expect(
      jax.tree.all(same),
      f'the copy of step {peer.step} has weights that nobody published',
    )
    return peer.step
  return None


class Reader:
  """Member 0 in this process, and what a member 1 elsewhere would publish."""

  def __init__(self, folder: pathlib.Path):
    """Opens nothing yet."""
    self.folder = folder
    self.exchange = make_exchange(folder, 0)
    self.step = 0

  def __enter__(self) -> Reader:
    self.exchange.__enter__()
    self.publish()
    return self

  def __exit__(self, *exception: object) -> None:
    self.exchange.__exit__(*exception)

  def look(self) -> int | None:
    """The step of the copy that would teach now; its weights are right."""
    return look(self.exchange, 0)

  def failed_loads(self) -> int:
    """So far."""
    return self.exchange.account(0).failed_loads

  def publish(self, **changes: Any) -> float:
    """Publishes the next step and waits until it is seen; returns seconds.

    Args:
      **changes: what its notes say instead of the truth.
    """
    with self.about_to_appear(**changes):
      pass
    return self.sees()

  def sees(self) -> float:
    """Waits until the newest publication is seen; returns seconds."""
    return until(lambda: self.look() == self.step, f'to see step {self.step}')

  @contextlib.contextmanager
  def about_to_appear(self, **changes: Any) -> Iterator[pathlib.Path]:
    """The next publication, to be spoilt: it appears at the block's end.

    Args:
      **changes: what its notes say instead of the truth.

    Yields:
      Where it lies meanwhile.
    """
    self.step += 1
    variables = weights(1, self.step)
    notes = Notes(
      member=1,
      step=self.step,
      incarnation=1,
      wall_time=time.time(),
      task_loss=None,
      config_hash='',
      precision='float32',
      num_bytes=precision.num_bytes(variables),
    )
    aside = self.folder / 'aside'
    publication.write(epath.Path(aside), variables, notes._replace(**changes))
    yield aside / str(self.step)
    (self.folder / '1').mkdir(parents=True, exist_ok=True)
    (aside / str(self.step)).rename(self.newest)

  @property
  def newest(self) -> pathlib.Path:
    """Where the newest publication lies when it is to be seen."""
    return self.folder / '1' / str(self.step)


# The stage.


class Stage:
  """Where faults are done: folders, chance, and processes that end with it."""

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    seed: int = 0,
    kills: int = 20,
    say: Callable[[str], None] = print,
  ):
    """Makes nothing yet.

    Args:
      folder: for everything.
      seed: of everything that is drawn.
      kills: how many, for the fault of that name.
      say: shows what is being done.
    """
    self.kills = kills
    self.say = say
    self._folder = folder
    self._seed = seed
    self._jobs: list[Job] = []
    self._pair: Pair | None = None
    self._starting = False
    self._signal: int | None = None

  def __enter__(self) -> Stage:
    return self

  def __exit__(self, *exception: object) -> None:
    for job in self._jobs:
      job.kill()

  def folder(self, name: str) -> pathlib.Path:
    """A new one."""
    path = self._folder / name
    path.mkdir(parents=True)
    return path

  def random(self, name: str) -> random.Random:
    """The same for a fault, whatever was done before it."""
    return random.Random(f'{self._seed} {name}')

  def start(self, line: Sequence[str], rows: pathlib.Path) -> Job:
    """Starts a process that does not outlive this stage."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    log = rows.with_name(f'log-{len(self._jobs)}.txt')
    self._starting = True
    self._jobs.append(Job(line, rows, log))
    self._starting = False
    if self._signal is not None:
      sys.exit(128 + self._signal)
    return self._jobs[-1]

  @contextlib.contextmanager
  def ended_by_signals(self) -> Iterator[None]:
    """Makes them end what goes on here as an error would, processes included.

    A process that is just being started is first put down as one of them.
    """

    def end(number: int, frame: object) -> None:
      del frame
      self._signal = number
      if not self._starting:
        sys.exit(128 + number)

    # SIGINT, too: in the background a shell has it ignored.
    before = {
      number: signal.signal(number, end)
      for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def pair(self) -> Pair:
    """Two processes at work; the same ones for as long as both are well."""
    if self._pair is None:
      self.say('two members start …')
      workdir = self.folder(f'pair-{len(self._jobs)}')
      self._pair = Pair(Run(self, workdir, members=2))
    return self._pair

  def drop_pair(self) -> None:
    """The next fault gets new ones."""
    if self._pair is not None:
      for job in self._pair.jobs:
        job.kill()
      self._pair = None


# Faults to processes.


def kills(stage: Stage, *, members: int = 3, num_steps: int = 6_000) -> Result:
  """Kill -9 of random members at random times; each starts again at once."""
  chance = stage.random('kills')
  run = Run(
    stage,
    stage.folder('kills'),
    members=members,
    num_steps=num_steps,
    checkpoint_interval_steps=min(200, num_steps // 4),
  )
  lives = [run.start(member) for member in range(members)]
  for member in range(members):
    run.until_trained(member)
  repeated = {member: -num_steps for member in range(members)}
  losses, killed = [], 0
  while killed < stage.kills:
    pause, began = chance.uniform(1.0, 11.0), time.monotonic()
    # On a fast machine all are killed before the run is over, too.
    share = (killed + 1) / (stage.kills + 1)
    while time.monotonic() - began < pause:
      for job in run.jobs.values():
        job.trained()
      if min(job.step() for job in run.jobs.values()) > share * num_steps:
        break
      time.sleep(_LOOK_S)
    alive = [m for m, job in run.jobs.items() if job.process.poll() is None]
    expect(alive, f'the run was over after {killed} kills')
    member = chance.choice(alive)
    job = run.jobs[member]
    job.kill()
    if job.process.returncode != -signal.SIGKILL:
      job.wait(0, f'member {member} to its end')
      continue
    reached, trained = job.step(), job.trained()
    repeated[member] += trained
    killed += 1
    again = run.start(member)
    lives.append(again)
    losses.append((again, reached))
    stage.say(
      f'kill {killed} of {stage.kills}: member {member} at step {reached:,}, '
      f'after {trained:,} steps of this life'
    )
  stage.say('no more kills; the run goes on to its end …')
  until(
    lambda: (
      [job.trained() for job in run.jobs.values()]
      and all(job.process.poll() is not None for job in run.jobs.values())
    ),
    'the run to end',
  )
  run.finish()
  for member, job in run.jobs.items():
    repeated[member] += job.trained()
    run.check_rows(member, num_steps)
  lost = [
    reached - job.start_step()
    for job, reached in losses
    if job.seconds_to_row is not None
  ]
  seconds = [
    job.seconds_to_row
    for job in lives[members:]
    if job.seconds_to_row is not None
  ]
  return Result(
    f'kill -9 × {killed}, {members} members of {num_steps:,} steps, each '
    'started again at once',
    f'{sum(repeated.values()):,} steps trained again, at most '
    f'{max(lost, default=0):,} a kill; no row; {_left_behind(run.workdir)} '
    'half-written files or folders left behind',
    f'next row after {statistics.median(seconds or [0.0]):.1f} s, at most '
    f'{max(seconds, default=0.0):.1f} s',
  )


def _left_behind(workdir: pathlib.Path) -> int:
  """What killed processes left in the exchange and nobody cleared."""
  names = [path.name for path in (workdir / 'exchange').glob('*/*')]
  half = r'tmp|removed|\.lease\.json\.\w{32}|\.clock'
  return len([name for name in names if re.search(half, name)])


def second_job(stage: Stage) -> Result:
  """A second process for a member is refused; a killed first one frees it."""
  run = Run(stage, stage.folder('second-job'), members=2)
  first = run.start(0)
  run.until_trained(0)
  elsewhere = run.workdir / 'elsewhere'
  second = [
    run.start(0),
    run.start(
      0,
      f'--workdir={elsewhere}',
      f'--config.codistill.exchange_dir={run.workdir / "exchange"}',
    ),
  ]
  for job in second:
    job.wait(2, 'a second job')
    expect(
      'another process is at work' in job.complaint(),
      f'a second job was told: {job.complaint()}',
    )
  expect(not list(elsewhere.glob('rows*')), 'a second job wrote rows')
  step = first.step()
  until(lambda: first.step() > step + 50, 'the first job to go on', [first])
  first.kill()
  third = run.start(0)
  run.until_trained(0)
  third.stop()
  run.check_rows(0)
  return Result(
    'a second process in the same workdir and one in another with the same '
    'exchange; then kill -9 of the first',
    'nothing: both refused with a sentence and status 2',
    f'next row {third.seconds_to_row or 0.0:.1f} s after the next start',
  )


def frozen_job(stage: Stage) -> Result:
  """A process that hangs is replaced, and stops when it wakes."""
  run = Run(stage, stage.folder('frozen-job'), members=2)
  first = run.start(0)
  run.until_trained(0, 250)
  first.process.send_signal(signal.SIGSTOP)
  began = time.monotonic()
  while True:
    second = run.start(0)
    until(
      lambda job=second: job.trained() or job.process.poll() is not None,
      'a second job',
    )
    if second.process.poll() is None:
      break
    second.wait(2, 'a second job before the timeout')
    expect(time.monotonic() - began < LONG_S, 'the lease was never free')
  seconds = time.monotonic() - began
  first.process.send_signal(signal.SIGCONT)
  first.wait(1, 'the first job when it wakes')
  expect(
    'another process has taken over' in first.complaint(),
    f'the first job was told: {first.complaint()}',
  )
  run.until_trained(0, second.trained() + 50)
  start = second.start_step()
  second.stop()
  run.check_rows(0)
  return Result(
    'SIGSTOP for longer than lease_timeout_s (8 s), another process for the '
    'member, SIGCONT',
    f'no row; the second went on from the checkpoint of step {start:,}; the '
    'first stopped with a sentence and status 1',
    f'next row after {seconds:.1f} s',
  )


def missing(stage: Stage) -> Result:
  """One of three members never starts."""
  run = Run(stage, stage.folder('missing'), members=3, num_steps=600)
  for member in (0, 1):
    run.start(member)
  run.finish()
  taught = 0
  for member in (0, 1):
    rows = run.check_rows(member, 600)
    expect(
      rows[-1]['left_out'].get('2') == 'absent',
      f'member {member} ends with {rows[-1]["left_out"]} left out',
    )
    taught += sum(row['num_peers'] for row in rows)
  # The first to be done may not have seen the other, but then the other it.
  expect(taught, 'nobody was taught')
  return Result(
    'two processes of a run of three members',
    'one teacher of two',
    'none: both were done',
  )


def late(stage: Stage) -> Result:
  """One of two members starts long after the other."""
  run = Run(stage, stage.folder('late'), members=2)
  first = run.start(0)
  run.until_trained(0, 300)
  expect(
    last_rows(run.rows_path(0), 8 << 10)[-1].get('peers') in ([], None),
    'a peer that has not started',
  )
  ahead = first.step()
  second = run.start(1)
  for member, job in ((0, first), (1, second)):
    until(
      lambda member=member: any(
        row.get('peers') == [1 - member]
        for row in last_rows(run.rows_path(member), 8 << 10)
      ),
      f'member {member} to be taught',
      [job],
    )
  seconds = time.monotonic() - second.began
  for member, job in ((0, first), (1, second)):
    job.stop()
    run.check_rows(member)
  return Result(
    f'the second of two members started when the first was at step {ahead:,}',
    'the teacher until then',
    f'both taught {seconds:.1f} s after the start',
  )


def slow_jobs(stage: Stage, seconds: float = 2.0) -> Result:
  """A delay under one process's reading and another's writing."""
  run = Run(
    stage,
    stage.folder('slow-jobs'),
    members=2,
    codistill__reload_interval_steps=10,
  )
  run.start(0, slow=f'load={seconds}')
  run.start(1, slow=f'write={seconds}')
  for member, job in run.jobs.items():
    until(
      lambda member=member: any(
        row.get('peers') for row in last_rows(run.rows_path(member), 8 << 10)
      ),
      f'member {member} to be taught',
      [job],
    )
  tails = [Tail(run.rows_path(member)) for member in (0, 1)]
  rows: list[list[Row]] = [[], []]

  def done() -> bool:
    for found, tail in zip(rows, tails, strict=True):
      found += tail.read()
    events = [{row.get('event') for row in found} for found in rows]
    return 'load' in events[0] and {'skip', 'publish'} <= events[1]

  until(done, 'a slow load and a skipped publication', run.jobs.values())
  stopping = [job.stop() for job in run.jobs.values()]
  shares = []
  for member, found in enumerate(rows):
    train = [row for row in found if row['kind'] == 'train']
    passed = train[-1]['seconds'] - train[0]['seconds']
    share = sum(row['stall_seconds'] for row in train[1:]) / passed
    expect(share < 0.1, f'member {member} was kept for {share:.0%} of its time')
    shares.append(share)
  skipped = [row for row in rows[1] if row.get('event') == 'skip']
  age = max(row['peer_age'] or 0 for row in rows[0] if row['kind'] == 'train')
  return Result(
    f'{seconds:g} s of sleep before each load of member 0 and each write of '
    'member 1',
    f'{len(skipped)} publications skipped and counted; peers up to {age} steps '
    f'old; the train loops were kept {max(shares):.1%} of their time',
    f'stopped within {max(stopping):.1f} s',
  )


def stop(stage: Stage) -> Result:
  """SIGTERM to the two processes that all this was done to."""
  pair = stage.pair()
  seconds = [job.stop() for job in pair.jobs]
  for member in (0, 1):
    pair.run.check_rows(member)
  stage.drop_pair()
  return Result(
    'SIGTERM to the two members of the faults before',
    'nothing: status 143 and rows 1, 2, 3, …',
    f'stopped within {max(seconds):.1f} s',
  )


# Faults to the folder.


def read_only(world: World, by: str | None = None) -> Result:
  """Nobody can write to the folder for a while."""
  with unwritable(world.exchange, by) as how:
    world.go_on('failed publish')
  seconds = world.recover()
  return Result(how, _publications(world), f'news after {seconds:.1f} s')


@contextlib.contextmanager
def unwritable(folder: pathlib.Path, by: str | None) -> Iterator[str]:
  """Takes away the right to write to a folder of members, even root's.

  Args:
    folder: with a folder for each member.
    by: 'chattr' (root, on a disk that knows it), 'chmod' (anybody but root)
      or 'file' (always); None: the first that works.

  Yields:
    How.
  """
  folders = [folder, *(path for path in folder.iterdir() if path.is_dir())]
  commands = {
    'chattr': (['chattr', '+i'], ['chattr', '-i']),
    'chmod': (['chmod', 'a-w'], ['chmod', 'u+w']),
  }
  for name in [by] if by else commands:
    if name == 'file' or shutil.which(name) is None:
      continue
    forbid, allow = commands[name]
    try:
      tried = subprocess.run([*forbid, *folders], capture_output=True)
      if tried.returncode == 0 and not _can_write(folder):
        yield f'{" ".join(forbid)} on the folder and the members’ folders'
        return
    finally:
      subprocess.run([*allow, *folders], capture_output=True)
  with contextlib.ExitStack() as stack:
    for path in folders[1:]:
      stack.enter_context(_file_in_place_of(path))
    yield 'a file in place of each member’s folder'


def _can_write(folder: pathlib.Path) -> bool:
  try:
    with tempfile.TemporaryFile(dir=folder):
      return True
  except OSError:
    return False


@contextlib.contextmanager
def _file_in_place_of(folder: pathlib.Path) -> Iterator[None]:
  aside = folder.with_name(f'{folder.name}-aside')
  file = folder.with_name(f'{folder.name}-file')
  file.write_text('')
  folder.rename(aside)
  _put_in_place(file, folder)
  yield
  _put_in_place(aside, folder)


def _put_in_place(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Renames a path to a folder that members make again when it is away."""
  for attempt in range(1_000):
    fresh = folder.with_name(f'{path.name}-{attempt}')
    with contextlib.suppress(OSError):
      with contextlib.suppress(FileNotFoundError):
        folder.rename(fresh)
      path.rename(folder)
      return
  raise FailedError(f'{path.name} could not be put in the place of {folder}')


def removed(world: World) -> Result:
  """The folder is removed while both are at work; a fresh one appears."""
  for _ in range(3):
    # Whoever writes there meanwhile may leave it not empty.
    shutil.rmtree(world.exchange, ignore_errors=True)
  seconds = world.recover()
  world.go_on()
  _await_leases(world)
  return Result(
    'rm -r of the exchange',
    _publications(world),
    f'news after {seconds:.1f} s, in a new folder',
  )


def moved(world: World) -> Result:
  """The folder is renamed, a fresh one appears, and the old one comes back."""
  aside = world.exchange.with_name('exchange-aside')
  world.exchange.rename(aside)
  away = world.recover()
  world.go_on()
  _put_in_place(aside, world.exchange)
  back = world.recover()
  _await_leases(world)
  return Result(
    'mv of the exchange, and back in place of the new one',
    _publications(world),
    f'news after {away:.1f} s in a new folder, {back:.1f} s in the old one',
  )


def garbage(world: World, chance: random.Random) -> Result:
  """All kinds of things in the members' folders."""
  for member in (0, 1):
    spoil(world.exchange / str(member), chance)
  world.go_on('failed load')
  seconds = world.recover()
  _await_leases(world)
  return Result(
    'random files; a file, an empty folder, a link to itself and step 99999999 '
    'of junk; random bytes in the newest publication and lease.json',
    _publications(world),
    f'news after {seconds:.1f} s',
  )


def spoil(folder: pathlib.Path, chance: random.Random) -> None:
  """Fills a member's folder with what does not belong there."""
  for _ in range(5):
    name = chance.randbytes(4).hex()
    (folder / f'junk-{name}').write_bytes(chance.randbytes(1_000))
  real = publication.steps(epath.Path(folder))
  if real:
    for path in files_of(folder / str(max(real))):
      # Pruned meanwhile, it is gone as well.
      with contextlib.suppress(FileNotFoundError):
        path.write_bytes(chance.randbytes(path.stat().st_size))
  (folder / 'lease.json').write_bytes(chance.randbytes(300))
  (folder / '99999996').write_bytes(chance.randbytes(300))
  (folder / '99999997').mkdir()
  (folder / '99999998').symlink_to(folder / '99999998')
  junk = folder / '99999999'
  for name in ('_CHECKPOINT_METADATA', 'state/_METADATA', 'state/d/0'):
    (junk / name).parent.mkdir(parents=True, exist_ok=True)
    (junk / name).write_bytes(chance.randbytes(1_000))


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder that hold anything."""
  return sorted(
    path for path in folder.rglob('*') if path.is_file() and path.stat().st_size
  )


def _await_leases(world: World) -> None:
  """Waits until both leases say again that they are held."""
  for member in (0, 1):
    path = world.exchange / str(member) / 'lease.json'
    until(lambda path=path: _says_held(path), f'the lease of member {member}')


def _says_held(lease: pathlib.Path) -> bool:
  try:
    return json.loads(lease.read_text())['held']
  except (OSError, ValueError):
    return False


def _publications(world: World) -> str:
  missed = world.missed()
  return 'nothing' if missed == 'nothing' else f'publications: {missed}'


# Faults to publications, read in this process.

# What becomes of a file's bytes.
Spoil = Callable[[bytes, random.Random], bytes]
TRUNCATED: dict[str, Spoil] = {
  'to nothing': lambda data, chance: b'',
  'to a half': lambda data, chance: data[: len(data) // 2],
  'by a byte': lambda data, chance: data[:-1],
}
RANDOM: dict[str, Spoil] = {
  'by random bytes': lambda data, chance: chance.randbytes(len(data)),
}


def _flip(data: bytes, chance: random.Random) -> bytes:
  place, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
  return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


FLIPPED: dict[str, Spoil] = {f'flip {number}': _flip for number in range(4)}


def damaged(
  folder: pathlib.Path, ways: Mapping[str, Spoil], chance: random.Random
) -> Result:
  """Each file of the newest publication is damaged in turn, and mended."""
  with Reader(folder) as reader:
    number = len(files_of(reader.newest))
    refused, seconds = 0, []
    for index in range(number):
      for spoil in ways.values():
        failed = reader.failed_loads()
        before = reader.step
        with reader.about_to_appear() as path:
          name = files_of(path)[index].relative_to(path)
          data = (path / name).read_bytes()
          (path / name).write_bytes(spoil(data, chance))
        until(
          lambda failed=failed: (
            reader.look() == reader.step or reader.failed_loads() > failed
          ),
          f'a look at a damaged {name}',
        )
        if (seen := reader.look()) == before:
          refused += 1
          (reader.newest / name).write_bytes(data)
        else:
          expect(seen == reader.step, f'step {seen} instead of {before}')
        seconds.append(reader.sees())
    failed = reader.failed_loads()
  tried = number * len(ways)
  return Result(
    f'each of {number} files in turn: {", ".join(ways)}',
    f'{refused} of {tried} refused and the old copy kept, {tried - refused} '
    f'read right without that file; {failed} failed loads counted',
    f'mended, it is read within {max(seconds):.1f} s',
  )


def clock(folder: pathlib.Path) -> Result:
  """Publications that say they are of tomorrow or yesterday."""
  seconds = []
  with Reader(folder) as reader:
    for days in (1, -1):
      seconds.append(reader.publish(wall_time=time.time() + days * _DAY_S))
      with reader.about_to_appear() as path:
        at = time.time() + days * _DAY_S
        os.utime(path, (at, at))
      seconds.append(reader.sees())
    failed = reader.failed_loads()
  expect(not failed, f'{failed} failed loads')
  return Result(
    'wall_time in the notes, and the time of the folder, off by ±1 day',
    'nothing: read like any other',
    f'read within {max(seconds):.1f} s',
  )


def slow_disk(folder: pathlib.Path, steps: int = 200) -> Result:
  """A load that takes as long as many steps."""
  held, go = threading.Event(), threading.Event()
  real = publication.load

  def load(*arguments: Any) -> Any:
    held.set()
    go.wait(LONG_S)
    return real(*arguments)

  with Reader(folder) as reader, _replaced('load', load):
    with reader.about_to_appear():
      pass
    until(held.is_set, 'a load')
    began, before = time.monotonic(), reader.step - 1
    for step in range(1, steps + 1):
      expect(reader.look() == before, 'another copy than before')
      reader.exchange.offer(0, step, weights(0, step))
    passed = time.monotonic() - began
    stalled = reader.exchange.account(0).stall_seconds or 0.0
    expect(passed < LONG_S, 'the steps waited for the load')
    go.set()
    seconds = reader.sees()
  return Result(
    f'a load that returns only after {steps} more steps',
    f'{1e3 * stalled / steps:.1f} ms a step in the exchange; a teacher {steps} '
    'steps older',
    f'read {seconds:.1f} s after the disk is back',
  )


def slow_writer(folder: pathlib.Path, steps: int = 200) -> Result:
  """A write that takes as long as many steps."""
  held, go = threading.Event(), threading.Event()
  real = publication.write

  def write(*arguments: Any) -> None:
    held.set()
    go.wait(LONG_S)
    real(*arguments)

  with make_exchange(folder, 1) as exchange, _replaced('write', write):
    exchange.offer(1, 1, weights(1, 1))
    until(held.is_set, 'a write')
    began = time.monotonic()
    for step in range(2, steps + 1):
      exchange.offer(1, step, weights(1, step))
    expect(time.monotonic() - began < LONG_S, 'the steps waited for the write')
    events = collections.Counter(
      event['event'] for event in exchange.account(1).events
    )
    go.set()
    member = epath.Path(folder) / '1'
    seconds = until(
      lambda: {1, steps} <= publication.steps(member).keys(), 'the last one'
    )
  expect(
    dict(events) == {'skip': steps - 2},
    f'{dict(events)} of {steps} publications, of which two were written',
  )
  return Result(
    f'a write that returns only after {steps - 1} more publications',
    f'{events["skip"]} publications skipped and counted; one waited',
    f'the newest was there {seconds:.1f} s after the disk was back',
  )


@contextlib.contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
  """Puts another function under whoever reads or writes publications."""
  real = getattr(publication, name)
  setattr(publication, name, function)
  try:
    yield
  finally:
    setattr(publication, name, real)


# The command.


def _on_pair(fault: Callable[[World], Result]) -> Callable[[Stage], Result]:
  """A fault to the folder, done to two processes that may go on after it."""

  def on_pair(stage: Stage) -> Result:
    pair = stage.pair()
    pair.events()
    return fault(pair)

  return on_pair


def _damaged(name: str, ways: Mapping[str, Spoil]) -> Callable[[Stage], Result]:
  return lambda stage: damaged(stage.folder(name), ways, stage.random(name))


FAULTS: dict[str, Callable[[Stage], Result]] = {
  'kills': kills,
  'second-job': second_job,
  'frozen-job': frozen_job,
  'missing': missing,
  'late': late,
  'slow-jobs': slow_jobs,
  'read-only': _on_pair(read_only),
  'removed': _on_pair(removed),
  'moved': _on_pair(moved),
  'garbage': lambda stage: garbage(stage.pair(), stage.random('garbage')),
  'stop': stop,
  'truncated': _damaged('truncated', TRUNCATED),
  'random-bytes': _damaged('random-bytes', RANDOM),
  'flipped-bits': _damaged('flipped-bits', FLIPPED),
  'clock': lambda stage: clock(stage.folder('clock')),
  'slow-disk': lambda stage: slow_disk(stage.folder('slow-disk')),
  'slow-writer': lambda stage: slow_writer(stage.folder('slow-writer')),
}
COLUMNS = ('fault', 'how', 'lost', 'recovery', 'outcome')


@contextlib.contextmanager
def _stderr_to(path: pathlib.Path) -> Iterator[None]:
  """Orbax and TensorStore tell pages of each load that fails, on purpose."""
  sys.stderr.flush()
  kept = os.dup(2)
  with open(path, 'ab') as file:
    os.dup2(file.fileno(), 2)
  try:
    yield
  finally:
    sys.stderr.flush()
    os.dup2(kept, 2)
    os.close(kept)


def do(
  names: Sequence[str], stage: Stage, log: pathlib.Path
) -> list[tuple[str, ...]]:
  """Does faults one after the other.

  Args:
    names: keys of `FAULTS`.
    stage: where.
    log: a file for what libraries have to say.

  Returns:
    A row of the table each.
  """
  table = []
  for name in names:
    began = time.monotonic()
    stage.say(f'{name} …')
    try:
      with _stderr_to(log):
        result, outcome = FAULTS[name](stage), 'ok'
    # Whatever a fault brought about is what this is to find out.
    except Exception as error:
      said = f'{error}' if isinstance(error, FailedError) else repr(error)
      how = (FAULTS[name].__doc__ or '–').partition('\n')[0]
      result, outcome = Result(how, '–', '–'), f'FAILED: {said}'
      stage.drop_pair()
    stage.say(f'{name}: {outcome} ({time.monotonic() - began:.0f} s)')
    table.append((name, *result, outcome))
  return table


def _print(rows: Sequence[Sequence[str]], title: str, console: Console) -> None:
  table = Table(*COLUMNS, title=title, box=box.SIMPLE_HEAD, show_lines=True)
  for row in rows:
    table.add_row(*map(Text, row))
  if not console.is_terminal:
    console.width = max(console.width, 160)
  console.print(table)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """The table for a document."""
  lines = [COLUMNS, ['---'] * len(COLUMNS), *rows]
  return ''.join(
    f'| {" | ".join(cell.replace("|", "/") for cell in line)} |\n'
    for line in lines
  )


def _number(least: int) -> Callable[[str], int]:
  def parse(text: str) -> int:
    if not text.isdecimal() or int(text) < least:
      raise argparse.ArgumentTypeError(f'{text!r} is no number from {least} on')
    return int(text)

  return parse


def main(argv: Sequence[str] | None = None) -> int:
  """Does the faults and prints what came of them; 1 if one failed."""
  parser = argparse.ArgumentParser(
    prog='scripts.chaos',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'names',
    metavar='NAME',
    nargs='*',
    default=['all'],
    help=f'all, or some of: {", ".join(FAULTS)}',
  )
  parser.add_argument('--seed', type=_number(0), default=0)
  parser.add_argument('--kills', type=_number(1), default=20)
  parser.add_argument(
    '--keep', metavar='DIR', type=pathlib.Path, help='for runs and logs'
  )
  parser.add_argument('--markdown', metavar='FILE', type=pathlib.Path)
  arguments = parser.parse_args(argv)
  names = list(dict.fromkeys(arguments.names))
  if unknown := [name for name in names if name not in (*FAULTS, 'all')]:
    parser.error(f'no fault {unknown[0]!r}; there are {", ".join(FAULTS)}')
  if 'all' in names:
    names = list(FAULTS)
  jax.config.update('jax_platforms', 'cpu')
  console = Console()
  began = time.monotonic()

  def say(text: str) -> None:
    passed = time.monotonic() - began
    console.print(f'{passed:5.0f} s  {escape(text)}', highlight=False)

  folder = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix='chaos-'))
  folder = folder.expanduser().absolute()
  folder.mkdir(parents=True, exist_ok=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix='', dir=folder))
  say(f'seed {arguments.seed}, in {folder}')
  stage = Stage(folder, seed=arguments.seed, kills=arguments.kills, say=say)
  try:
    with stage.ended_by_signals(), stage:
      rows = do(names, stage, folder / 'stderr.txt')
  except SystemExit as stopped:
    say('stopped; all processes were killed')
    return stopped.code
  minutes = (time.monotonic() - began) / 60
  _print(rows, f'Seed {arguments.seed}, {minutes:.1f} min', console)
  if arguments.markdown is not None:
    arguments.markdown.write_text(markdown(rows), encoding='utf-8')
  failed = any(row[-1] != 'ok' for row in rows)
  if arguments.keep is None and not failed:
    shutil.rmtree(folder.parent, ignore_errors=True)
  else:
    console.print(f'runs and logs: {folder}', soft_wrap=True)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
