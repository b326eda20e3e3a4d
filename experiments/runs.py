"""Reads provenance and rows of a run's processes, without jax."""

from __future__ import annotations

import pathlib
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from experiments import results
from experiments.errors import UserError, user_errors
from experiments.paths import FIRST_PHASE, ROOT
from experiments.record import Record, Row, config_hash, read_rows, read_run

Run = dict[str, Any]


def read_runs(workdir: pathlib.Path) -> dict[int | None, Run]:
  """The provenance of every process that began in a workdir.

  Returns:
    A dictionary by the member that the process trains; {None: …} if it trains
    all.

  Raises:
    UserError: if there is none, or one cannot be read.
  """
  runs = {}
  for member, path in run_files(workdir):
    try:
      runs[member] = read_checked(path)
    except FileNotFoundError:
      continue  # Begun anew since the folder was listed.
  if not runs:
    if any((workdir / FIRST_PHASE).glob('run*.json')):
      raise UserError(
        f'{workdir} has only its first phase so far: wait for the second, or '
        f'take {workdir / FIRST_PHASE}'
      )
    raise UserError(
      f'{workdir} holds no run; make one with python -m experiments.run '
      f'--config=NAME --workdir={workdir}'
    )
  return runs


def run_files(
  workdir: pathlib.Path,
) -> Iterator[tuple[int | None, pathlib.Path]]:
  """The member that each process trains, None for all, and its provenance."""
  for path in sorted(workdir.glob('run*.json')):
    if match := re.fullmatch(r'run(?:-(\d+))?\.json', path.name):
      yield None if match[1] is None else int(match[1]), path


def read_checked(path: pathlib.Path) -> Run:
  """The provenance in a `run.json`.

  Raises:
    UserError: if it is damaged.
    FileNotFoundError: if it is gone.
  """
  try:
    return read_run(path)
  except ValueError as error:
    raise UserError(
      f'{error}; put back a copy of it, or begin that run anew with --overwrite'
    ) from error


def members_of(runs: Mapping[int | None, Run]) -> range:
  """The numbers of all members that the config asks for."""
  return range(max(map(_num_members, runs.values())))


def some_run(runs: Mapping[int | None, Run]) -> Run:
  """The provenance of one process; all have the same config and code."""
  return next(iter(runs.values()))


def _num_members(run: Run) -> int:
  return int(run['config']['codistill']['members'])


def death_of(run: Run, member: int) -> int | None:
  """The step after which a member dies on purpose; None if it does not."""
  # Older code had no faults.
  fault = run['config'].get('fault', {})
  if (fault.get('kind'), fault.get('member')) != ('death', member):
    return None
  return int(fault['step'])


def value_now(run: Run, key: str) -> Any:
  """A key of `codistill` as a run was begun, or last gone on with."""
  changed = (run.get('resumed') or [{}])[-1].get('changed', {})
  return changed.get(f'codistill.{key}', run['config']['codistill'].get(key))


def label_of(run: Run) -> str:
  """The label of a run, such as 'imagenet_sync:laptop'."""
  return ':'.join(filter(None, (run['experiment'], run['variant'])))


def reference_of(run: Run) -> str:
  """The value of `--config` that names a run's config from any folder."""
  file = run.get('config_file')
  if file is None:
    return label_of(run)
  where = file['module'] or str(ROOT / file['path'])
  return ':'.join(filter(None, (where, run['variant'])))


def commit_of(run: Run) -> str:
  """The commit that last worked on a run."""
  return str((run.get('resumed') or [run])[-1].get('commit'))[:12]


def read_all_rows(
  workdir: pathlib.Path, runs: Mapping[int | None, Run]
) -> list[Row] | None:
  """The rows of all processes of a run; None if those of one are gone.

  Raises:
    UserError: if they are damaged.
  """
  rows = []
  for process in runs:
    path = Record(workdir, '' if process is None else f'-{process}').rows_path
    if not path.exists():
      return None
    with user_errors(ValueError):
      rows += read_rows(path)
  return rows


def identity_of(workdir: pathlib.Path) -> dict[str, Any]:
  """What tells a run from another in the same folder: its start and config.

  Its `point` is the same for all seeds of one point on the same data, wherever
  they lie.

  Raises:
    UserError: as `read_runs`.
  """
  runs = read_runs(workdir)
  run = some_run(runs)
  recipe = results.recipe_of(run['config'])
  recipe['codistill'].pop('frozen_dir', None)
  recipe['fingerprint'] = run.get('data', {}).get('fingerprint')
  return {
    'started': [run['started'] for run in runs.values()],
    'config_hash': run['config_hash'],
    'point': '-'.join(
      (
        results.stem(run['experiment'], run['variant']),
        config_hash(recipe)[:8],
      )
    ),
  }


# Batches of training whose mean tells how well a network fits what it learns
# from: a measure that costs nothing.
_LAST_BATCHES = 20


def fit_of(workdir: pathlib.Path) -> dict[str, Any] | None:
  """How well a finished run's members know what they have learnt from.

  Args:
    workdir: of the run.

  Returns:
    Its number of steps, the `seconds` that they took, and {'task_loss',
    'accuracy'} of `train`, the last 20 batches of each member while it trained
    on them, and of `held_out`, all that it was evaluated on at the end: means
    over the members. None if its rows, or the last of them, are gone.

  Raises:
    UserError: if they are damaged.
  """
  rows = read_all_rows(workdir, read_runs(workdir))
  if not any(row['kind'] == 'final' for row in rows or ()):
    return None
  last = max(row['step'] for row in rows)

  def mean(kind, first):
    return {
      key: statistics.fmean(
        row[key]
        for row in rows
        if row['kind'] == kind
        and isinstance(row['member'], int)
        and row['step'] >= first
      )
      for key in ('task_loss', 'accuracy')
    }

  return {
    'num_steps': last,
    'seconds': max(row['seconds'] for row in rows if row['kind'] == 'final'),
    'train': mean('train', last + 1 - _LAST_BATCHES),
    'held_out': mean('final', last),
  }
