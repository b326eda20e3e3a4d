"""The runs under test: their processes, members that meet, and the stage."""

from __future__ import annotations

import abc
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.record import read_rows, read_run
from scripts.chaos.outcome import expect, until
from scripts.status import last_rows

ROOT = pathlib.Path(__file__).parent.parent.parent
_INTERVAL_STEPS = 50
Row = dict[str, Any]

# Trains with slow reading or writing of publications, in a process of its own:
# load=2 or write=2 for two seconds each time.
_SLOW = """
import runpy, sys, time
from codistill.exchange.folder import publication

name, _, seconds = sys.argv.pop(1).partition('=')
real = getattr(publication, name)

def slow(*arguments):
  time.sleep(float(seconds))
  return real(*arguments)

setattr(publication, name, slow)
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


class Job:
  """One life of a member's process; its output goes to a file."""

  def __init__(
    self, line: Sequence[str], rows: pathlib.Path, log: pathlib.Path
  ):
    """Starts it.

    Args:
      line: the command.
      rows: the file that it writes or goes on with.
      log: a new file for its output.
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
          # The log must not lose the last lines of a killed process.
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
    """How it ended, for errors: status, and the last line that it printed."""
    lines = self.said().strip().splitlines() or ['']
    return f'ended with status {self.process.returncode}: {lines[-1][:200]}'

  def start_step(self) -> int:
    """The step that it says it went on from; 0 if it began anew."""
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
    """Kills it like kill -9, which no process survives."""
    self.process.kill()
    self.process.wait()

  def stop(self) -> float:
    """Stops it as Ctrl-C does, after a checkpoint; returns seconds."""
    self.process.terminate()
    return self.wait(128 + signal.SIGTERM, 'stopping')

  def complaint(self) -> str:
    """The one sentence that a process prints when it cannot go on."""
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
      stage: kills these processes at its end.
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
      # Otherwise each number of steps would need a program of its own.
      'schedule__warmup_cosine__num_steps': 100,
      'codistill__members': members,
      'codistill__reload_interval_steps': _INTERVAL_STEPS,
      'codistill__poll_interval_s': 0.1,
      'codistill__lease_timeout_s': 8.0,
      **config,
    }
    self._line = [
      *('--config=imagenet_codistill:smoke', f'--workdir={workdir}'),
      # An edit of this code meanwhile must not stop a restart.
      '--allow-code-change',
      *(f'--config.{k.replace("__", ".")}={v}' for k, v in config.items()),
    ]
    self.jobs: dict[int, Job] = {}

  def start(
    self,
    member: int,
    *arguments: str,
    slow: str | None = None,
    encoding: str | None = None,
  ) -> Job:
    """Starts a member's process; the member's latest one counts."""
    how = ['-m', 'experiments.run'] if slow is None else ['-c', _SLOW, slow]
    line = [sys.executable, *how, *self._line, f'--member={member}', *arguments]
    if encoding:
      line = ['env', f'PYTHONIOENCODING={encoding}', *line]
    job = self._stage.start(line, self.rows_path(member))
    self.jobs[member] = job
    return job

  def rows_path(self, member: int) -> pathlib.Path:
    """The file of one member's rows."""
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
    """Checks a member's train rows: one for each step, in order.

    Args:
      member: its index.
      num_steps: how many it must have, and then a final score; None for any.

    Raises:
      FailedError: if one is missing, is there twice, or was taught by a copy
        that nobody published.
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
  """The rows that are added to a file from now on."""

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


# Two members that meet in a folder.


class World(abc.ABC):
  """Two members and their folder, to which faults are done.

  Attributes:
    exchange: the folder.
  """

  exchange: pathlib.Path

  @abc.abstractmethod
  def go_on(self, event: str | None = None) -> None:
    """Waits until both have trained on, and had an event if one is given."""

  @abc.abstractmethod
  def recover(self) -> float:
    """Waits until each has loaded what the other publishes from now on.

    Returns:
      The seconds that it took.
    """

  @abc.abstractmethod
  def events(self) -> collections.Counter[str]:
    """Number of events of each kind since the last call."""

  def missed(self) -> str:
    """What went wrong since the last call."""
    events = self.events()
    kinds = ('failed publish', 'skip', 'failed load')
    told = [f'{events[kind]} × {kind}' for kind in kinds if events[kind]]
    return ', '.join(told) or 'nothing'


class Pair(World):
  """Two processes, which train until they are stopped."""

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
    """Both processes."""
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

    return until(done, 'both to load new weights', self.jobs)

  def events(self) -> collections.Counter[str]:
    self._read()
    found = collections.Counter(
      row['event'] for rows in self._rows for row in rows if 'event' in row
    )
    self._rows = [[], []]
    return found

  def _marks(self) -> list[int]:
    """The number of rows so far, of each member."""
    self._read()
    return [len(rows) for rows in self._rows]

  def _read(self) -> None:
    for rows, tail in zip(self._rows, self._tails, strict=True):
      rows += tail.read()


# The stage.


class Stage:
  """Folders, randomness and processes for faults; processes end with it."""

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
      seed: for all random choices.
      kills: number of kills, for the fault of that name.
      say: shows progress.
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
    self.kill_all()

  def folder(self, name: str) -> pathlib.Path:
    """Makes a new folder."""
    path = self._folder / name
    path.mkdir(parents=True)
    return path

  def random(self, name: str) -> random.Random:
    """Random choices for a fault, independent of the faults before it."""
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
    """Makes signals end the block like an error, its processes included.

    A process that is just being started is recorded first, so it ends, too.
    """

    def end(number: int, frame: object) -> None:
      del frame
      self._signal = number
      if not self._starting:
        sys.exit(128 + number)

    # SIGINT, too, because shells make background processes ignore it.
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
    """Two processes at work, the same ones until `kill_all`."""
    if self._pair is None:
      self.say('two members start …')
      workdir = self.folder(f'pair-{len(self._jobs)}')
      self._pair = Pair(Run(self, workdir, members=2))
    return self._pair

  def kill_all(self) -> None:
    """Kills all processes; the next fault gets a new pair."""
    for job in self._jobs:
      job.kill()
    self._pair = None
