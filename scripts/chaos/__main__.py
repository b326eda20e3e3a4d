"""Injects faults into real runs, and reports the damage and the recovery.

  python -m scripts.chaos [NAME … | all] [--seed=0] [--kills=20] [--keep DIR]

Processes are killed, stopped or started late. The exchange folder is read-only,
gone, moved or full of garbage. Publications are damaged, and they and leases
have wrong times. Disks are slow. Checkpoints are damaged, or cannot be removed.
A table says of each fault how it was done, what was lost, and how long recovery
took. The exit status is 1 if something was lost that must not be, or did not
recover.

Each process trains one member of `imagenet_codistill:smoke` on one CPU device.
Everything but the machine's own timing is drawn from the seed. Every wait has a
bound; all faults together take five to ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.paths import local_path
from scripts.chaos import (
  checkpoint_faults,
  folder_faults,
  process_faults,
  publication_faults,
)
from scripts.chaos.outcome import FailedError, Result
from scripts.chaos.publication_faults import Spoil
from scripts.chaos.runs import Stage, World


def _on_pair(fault: Callable[[World], Result]) -> Callable[[Stage], Result]:
  """Makes a fault of a folder one that is done to two running processes."""

  def on_pair(stage: Stage) -> Result:
    pair = stage.pair()
    pair.events()
    return fault(pair)

  return on_pair


def _damaged(name: str, ways: Mapping[str, Spoil]) -> Callable[[Stage], Result]:
  return lambda stage: publication_faults.damaged(
    stage.folder(name), ways, stage.random(name)
  )


FAULTS: dict[str, Callable[[Stage], Result]] = {
  'kills': process_faults.kills,
  'second-job': process_faults.second_job,
  'frozen-job': process_faults.frozen_job,
  'missing': process_faults.missing,
  'late': process_faults.late,
  'slow-jobs': process_faults.slow_jobs,
  'output': process_faults.output,
  'read-only': _on_pair(folder_faults.read_only),
  'removed': _on_pair(folder_faults.removed),
  'moved': _on_pair(folder_faults.moved),
  'garbage': lambda stage: folder_faults.garbage(
    stage.pair(), stage.random('garbage')
  ),
  'stop': process_faults.stop,
  'tomorrow': lambda stage: folder_faults.tomorrow(stage.folder('tomorrow')),
  'truncated': _damaged('truncated', publication_faults.TRUNCATED),
  'random-bytes': _damaged('random-bytes', publication_faults.RANDOM),
  'flipped-bits': _damaged('flipped-bits', publication_faults.FLIPPED),
  'clock': lambda stage: publication_faults.clock(stage.folder('clock')),
  'slow-disk': lambda stage: publication_faults.slow_disk(
    stage.folder('slow-disk')
  ),
  'slow-writer': lambda stage: publication_faults.slow_writer(
    stage.folder('slow-writer')
  ),
  'damaged-checkpoint': lambda stage: checkpoint_faults.damaged(
    stage.folder('damaged-checkpoint'),
    publication_faults.TRUNCATED | publication_faults.FLIPPED,
    stage.random('damaged-checkpoint'),
  ),
  'busy-checkpoint': lambda stage: checkpoint_faults.busy(
    stage.folder('busy-checkpoint')
  ),
}
COLUMNS = ('fault', 'how', 'lost', 'recovery', 'outcome')


@contextlib.contextmanager
def _stderr_to(path: pathlib.Path) -> Iterator[None]:
  """Sends stderr to a file: Orbax writes pages about each failing load."""
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
  """Injects faults one after the other.

  Args:
    names: keys of `FAULTS`.
    stage: where they happen.
    log: a file for messages of libraries.

  Returns:
    A row of the table for each.
  """
  table = []
  for name in names:
    began = time.monotonic()
    stage.say(f'{name} …')
    try:
      with _stderr_to(log):
        result, outcome = FAULTS[name](stage), 'ok'
    # Any exception is a finding, and the other faults are still to be done.
    except Exception as error:
      said = f'{error}' if isinstance(error, FailedError) else repr(error)
      how = (FAULTS[name].__doc__ or '–').partition('\n')[0]
      result, outcome = Result(how, '–', '–'), f'FAILED: {said}'
      stage.kill_all()  # They would go on beside the next fault.
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


def _number(least: int) -> Callable[[str], int]:
  def parse(text: str) -> int:
    if not text.isdecimal() or int(text) < least:
      raise argparse.ArgumentTypeError(f'{text!r} is not a number ≥ {least}')
    return int(text)

  return parse


def main(argv: Sequence[str] | None = None) -> int:
  """Injects the faults and prints a table; returns 1 if one failed."""
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
    '--keep', metavar='DIR', type=local_path, help='folder for runs and logs'
  )
  arguments = parser.parse_args(argv)
  names = list(dict.fromkeys(arguments.names))
  if unknown := [name for name in names if name not in (*FAULTS, 'all')]:
    parser.error(f'no fault {unknown[0]!r}; choose from {", ".join(FAULTS)}')
  if 'all' in names:
    names = list(FAULTS)
  jax.config.update('jax_platforms', 'cpu')
  console = Console()
  began = time.monotonic()

  def say(text: str) -> None:
    passed = time.monotonic() - began
    console.print(f'{passed:5.0f} s  {escape(text)}', highlight=False)

  folder = arguments.keep or pathlib.Path(tempfile.mkdtemp(prefix='chaos-'))
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
  failed = any(row[-1] != 'ok' for row in rows)
  if arguments.keep is None and not failed:
    shutil.rmtree(folder.parent, ignore_errors=True)
  else:
    console.print(f'runs and logs: {folder}', soft_wrap=True)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
