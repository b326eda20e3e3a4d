"""A run's rows and provenance: written as it goes, read back by anyone.

Two files a run: `run.json` says what made it, `rows.jsonl` has one JSON object
a line. This module imports only the standard library, so that scripts which
only draw or count need no jax.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SCHEMA_VERSION = 1
KINDS = ('train', 'exchange', 'eval', 'final')
# What every row has, in this order; null where a metric does not apply.
FIELDS = (
  'step',
  'member',
  'kind',
  'seconds',
  'examples_seen',
  'task_loss',
  'distill_loss',
  'num_peers',
  'peers',
  'peer_ages',
  'peer_age',
  'left_out',
  'failed_loads',
  'stall_seconds',
  'examples_per_second',
  'accuracy',
)
# What rows of evaluations have besides, in some runs; collected ones an id.
_SCORES = ('id', 'disagreement', 'memory_gap', 'corrupt', 'auc')
Row = dict[str, Any]


def is_own_metric(name: str) -> bool:
  """Whether a key of a row of an evaluation is one of `eval_metrics`."""
  return not (name in (*FIELDS, *_SCORES) or name.startswith('average_'))


class Record:
  """The files of one run (of one member of it, if it has a `suffix`)."""

  def __init__(self, workdir: str | os.PathLike[str], suffix: str = ''):
    """Names the files; opens nothing yet.

    Args:
      workdir: the run's folder.
      suffix: '' or '-I' for the files of member I alone.
    """
    self.workdir = pathlib.Path(workdir)
    self.suffix = suffix
    self.run_path = self.workdir / f'run{suffix}.json'
    self.rows_path = self.workdir / f'rows{suffix}.jsonl'
    self._rows = None

  def write_run(self, run: Mapping[str, Any]) -> None:
    """Replaces the provenance, atomically; with a checksum of the rest."""
    run = json.loads(json.dumps(run))  # As it will be read back.
    sealed = {**run, 'checksum': config_hash(run)}
    text = json.dumps(sealed, indent=2, ensure_ascii=False) + '\n'
    _replace(self.run_path, text)

  def write_row(self, row: Row) -> None:
    """Appends a row; it survives a kill once this returns.

    Args:
      row: some of `FIELDS` and any others; `step`, `member` and `kind` at
        least. A number that is not finite becomes null: JSON has none.

    Raises:
      ValueError: if its kind is not one of `KINDS`.
      OSError: if it cannot be written.
    """
    if row['kind'] not in KINDS:
      raise ValueError(f'no kind of row {row["kind"]!r}')
    row = {**dict.fromkeys(FIELDS), **row}
    line = json.dumps({key: _finite(value) for key, value in row.items()})
    if self._rows is None:
      # Unbuffered: nothing lingers here to be lost, or to fail again at close.
      self._rows = open(self.rows_path, 'ab', buffering=0)  # noqa: SIM115
    rest = memoryview((line + '\n').encode())
    while rest:
      rest = rest[self._rows.write(rest) :]

  def keep_rows(self, keep: Callable[[Row], bool]) -> None:
    """Drops the rows that are not kept, and a line that a kill cut short."""
    self.close()
    rows = self.read_rows()
    _replace(
      self.rows_path,
      ''.join(json.dumps(row) + '\n' for row in rows if keep(row)),
    )

  def read_rows(self) -> list[Row]:
    """The rows so far; none if there is no file.

    Raises:
      ValueError: as the function of that name.
    """
    with warnings.catch_warnings():
      # A run that resumes mends the cut line.
      warnings.simplefilter('ignore')
      rows = read_rows(self.rows_path) if self.rows_path.exists() else []
    for number, row in enumerate(rows, start=1):
      if not {'step', 'member', 'kind'} <= row.keys():
        raise ValueError(
          f'{self.rows_path}, line {number}: not a row; put back a copy of the '
          'file'
        )
    return rows

  def close(self) -> None:
    """Closes the rows; the next row opens them again."""
    if self._rows is not None:
      rows, self._rows = self._rows, None
      rows.close()


class SilentRecord(Record):
  """Names the same files and writes none: another process does."""

  def write_run(self, run: Mapping[str, Any]) -> None:
    """Leaves it alone."""

  def write_row(self, row: Row) -> None:
    """Leaves it alone."""

  def keep_rows(self, keep: Callable[[Row], bool]) -> None:
    """Leaves them alone."""


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
  """The rows of a file, in order.

  A last line that a kill cut short is left out with a warning.

  Raises:
    ValueError: if any other line is not a JSON object.
  """
  rows = []
  with open(path, 'rb') as lines:
    for number, line in enumerate(lines, start=1):
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):  # No JSON, or no text.
        row = None
      if isinstance(row, dict):
        rows.append(row)
      elif line.endswith(b'\n'):
        raise ValueError(
          f'{path}, line {number}: not a row; put back a copy of the file'
        )
      else:
        warnings.warn(f'{path}: dropped a cut last line', stacklevel=2)
  return rows


def read_run(path: str | os.PathLike[str]) -> dict[str, Any]:
  """The provenance in a `run.json`, without its checksum.

  Raises:
    ValueError: if it is damaged. What was edited on purpose has no checksum,
      and must be as `run.schema.json` has it.
    OSError: if it cannot be read.
  """
  try:
    run = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    checksum = run.pop('checksum', None)
  except (ValueError, RecursionError, AttributeError, TypeError) as error:
    raise ValueError(f'{path} is damaged: it is not a JSON object') from error
  if checksum is None:
    _check_schema(path, run)
  elif checksum != config_hash(run):
    raise ValueError(
      f'{path} is damaged, or was edited without removing its "checksum"'
    )
  return run


def _check_schema(path: str | os.PathLike[str], run: dict[str, Any]) -> None:
  """Raises a ValueError for what is not as a run writes it."""
  import jsonschema  # It takes 0.2 s, and most runs have a checksum.

  text = pathlib.Path(__file__).with_name('run.schema.json').read_text()
  validator = jsonschema.Draft202012Validator(json.loads(text))
  for error in validator.iter_errors(run):
    # Names come from the file, and may break the line.
    where = '.'.join(
      key if str(key).isidentifier() else repr(key) for key in error.path
    )
    message = f'{where}: {error.message}'.removeprefix(': ')
    raise ValueError(f'{path} is damaged: {message:.200}')


def config_hash(config: Mapping[str, Any]) -> str:
  """SHA-256 of a config's JSON, with its keys in any order."""
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def code_version(
  directory: str | os.PathLike[str], besides: Sequence[str] = ()
) -> dict[str, Any]:
  """The commit that a folder's code is at, and whether it was edited since.

  Args:
    directory: of a git checkout.
    besides: paths in it that are no code, such as results.

  Returns:
    {'commit': …, 'dirty': …}; both None where git does not tell.
  """
  try:
    return _version(directory, besides)
  except (OSError, subprocess.CalledProcessError):
    return {'commit': None, 'dirty': None}


def why_unknown(directory: str | os.PathLike[str]) -> str | None:
  """Why git does not tell the commit, and what to do; None if it does."""
  try:
    _version(directory)
  except FileNotFoundError:
    return 'git is not installed; install it'
  except (OSError, subprocess.CalledProcessError) as error:
    said = (getattr(error, 'stderr', None) or str(error)).strip()
    reason = said.partition('\n')[0].removeprefix('fatal: ')
    if 'dubious ownership' in said:
      return f'{reason}; git config --global --add safe.directory {directory}'
    return f'{reason}; run the code from a clone'
  return None


@functools.cache
def code_hash(directory: pathlib.Path, *others: pathlib.Path) -> str:
  """A hash of what makes a run, which tells a change with git or without.

  It is read once a process, as the code is. Configs are no part of it: a run
  has its own.

  Args:
    directory: of a checkout.
    *others: files elsewhere that belong to it.
  """
  paths = [
    path
    for package in ('codistill', 'data', 'experiments')
    for path in (directory / package).rglob('*.py')
    if directory / 'experiments/configs' not in path.parents
  ]
  whole = hashlib.sha256()
  for path in sorted(paths):
    part = hashlib.sha256(path.read_bytes()).hexdigest()
    whole.update(f'{path.relative_to(directory)} {part}\n'.encode())
  for path in others:
    whole.update(path.read_bytes())
  return whole.hexdigest()


def _version(
  directory: str | os.PathLike[str], besides: Sequence[str] = ()
) -> dict[str, Any]:
  commit = _git(directory, 'rev-parse', 'HEAD')
  but = (f':(exclude){path}' for path in besides)
  edited = _git(directory, 'status', '--porcelain', '--', '.', *but)
  return {'commit': commit, 'dirty': bool(edited)}


def _git(directory: str | os.PathLike[str], *arguments: str) -> str:
  return subprocess.run(
    ['git', *arguments],
    cwd=directory,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
  """Versions of Python and of packages; None for those without metadata."""
  versions = {}
  for name in names:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return {'python': platform.python_version(), **versions}


def _finite(value: Any) -> Any:
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a kill leaves the old one or the new one."""
  new = path.with_name(path.name + '.new')
  with open(new, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)
