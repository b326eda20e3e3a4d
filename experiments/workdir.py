"""Opens a run's folder: to begin in it, go on in it, or leave it alone.

A folder belongs to the config and the code that made it. Another config or
other code is refused, because the rows would no longer be those of the
provenance.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from codistill.exchange.folder.lease import (
  Lease,
  LeaseHeldError,
  is_held,
  read_lease,
)
from experiments import predictions
from experiments.errors import UserError
from experiments.given import unread
from experiments.paths import FIRST_PHASE
from experiments.record import Record, SilentRecord
from experiments.results import flat
from experiments.runs import read_checked, run_files, value_now

Run = dict[str, Any]

# Keys that may change when a run goes on, because no number depends on them;
# its errors advise to change some. Not exchange_dir, where publications are.
_MAY_CHANGE = tuple(
  f'codistill.{key}'
  for key in (
    'keep_publications',
    'keep_s',
    'lease_timeout_s',
    'wait_timeout_s',
  )
)


class Workdir(NamedTuple):
  """An opened folder.

  Attributes:
    path: the folder.
    record: its rows and provenance.
    run: the provenance, found or new.
    checkpoints: the folder of this process's checkpoints.
    tensorboard: the folder of event files.
    profile: the folder of traces.
    predictions: the folder of this process's predictions.
    resumes: whether there is a run to go on with.
  """

  path: pathlib.Path
  record: Record
  run: Run
  checkpoints: pathlib.Path
  tensorboard: pathlib.Path
  profile: pathlib.Path
  predictions: pathlib.Path
  resumes: bool

  @property
  def finished(self) -> bool:
    """Whether nothing is left to train."""
    return self.run['status'] in ('done', 'diverged')

  def check_data(self, fingerprint: str | None) -> None:
    """Refuses data that are not those of the members that are here.

    Args:
      fingerprint: of the data; None for a kind whose name says which they are.

    Raises:
      UserError: if the run that is gone on with, or another member's, has
        learnt from other data.
    """
    for _, path in run_files(self.path):
      mine = path == self.record.run_path
      if mine and not self.resumes:
        continue
      try:
        before = read_checked(path).get('data', {}).get('fingerprint')
      except FileNotFoundError:
        continue  # Begun anew since the folder was listed.
      if before not in (None, fingerprint):
        anew = '--overwrite' if mine else f'remove {path.name}'
        raise UserError(
          f'{self.path} began on data whose fingerprint is {before[:12]}, and '
          'these have another one; give it those, choose another --workdir, or '
          f'{anew} to begin anew'
        )

  def check_teachers(self, teachers: Run) -> None:
    """Refuses teachers that are another run than the one of before.

    Args:
      teachers: as `runs.identity_of` has them.

    Raises:
      UserError: if the run that is gone on with has learnt from others.
    """
    before = self.run.get('taught_by', teachers)
    keys = ('started', 'config_hash')
    if self.resumes and any(before[key] != teachers[key] for key in keys):
      raise UserError(
        f'{self.path} has learnt from teachers that began on '
        f'{min(before["started"])}, and these began on '
        f'{min(teachers["started"])}; put those back, choose another '
        '--workdir, or --overwrite to begin anew'
      )

  @contextlib.contextmanager
  def alone(self) -> Iterator[Lease | None]:
    """Keeps other runs out with a lease.

    Changes nothing else, so that a later refusal leaves the folder as it was.

    Yields:
      The lease on the folder; None for a process that is not its member's
      first.

    Raises:
      UserError: if another process is at work here.
    """
    if isinstance(self.record, SilentRecord):
      yield None
      return
    lease = Lease(
      self.path / f'lease{self.record.suffix}.json',
      timeout_s=value_now(self.run, 'lease_timeout_s'),
      what=str(self.path),
    )
    try:
      lease.acquire()
    except LeaseHeldError as error:
      raise UserError(f'{error}; or choose another --workdir') from error
    try:
      yield lease
    finally:
      lease.release()

  def begin(self) -> None:
    """Writes the provenance; first removes an old run that is not resumed."""
    if not self.resumes:
      self.remove_run()
    self.write_run(status='running')

  def remove_run(self) -> None:
    """Removes an old run; one process of a member does so for all."""
    if isinstance(self.record, SilentRecord):
      return
    # First, so that a kill in between leaves no run to go on with.
    self.record.run_path.unlink(missing_ok=True)
    for leftover in (
      self.checkpoints,
      self.tensorboard,
      self.profile,
      self.predictions,
      self.record.rows_path,
    ):
      _remove(leftover)

  def write_run(self, **changes: Any) -> None:
    """Changes the provenance and writes it."""
    self.run.update(changes)
    self.record.write_run(self.run)


def open_workdir(
  path: pathlib.Path,
  run: Run,
  *,
  member: int | None,
  overwrite: bool,
  allow_code_change: bool,
) -> Workdir:
  """Opens a run's folder, which need not exist; changes nothing.

  Args:
    path: the folder.
    run: the provenance of the run that is wanted.
    member: the one member that this process trains, or None for all.
    overwrite: begin anew, even if a run is there.
    allow_code_change: go on even if other code made the run.

  Returns:
    The folder, with the provenance of the run that is there, or with `run`.

  Raises:
    UserError: if it cannot be written, or holds a run of another or an unknown
      config or code.
  """
  if re.search(r'\[.*\]', str(path)):
    # Orbax looks for its files with a pattern that contains the path.
    raise UserError(
      f'no checkpoint in {path} could be read again, because of its brackets; '
      'choose another --workdir'
    )
  new = _workdir(Record, path, run, member)
  record = new.record
  there = next(one for one in (path, *path.parents) if one.exists())
  try:
    # A temporary file, so that a later refusal leaves nothing.
    with tempfile.TemporaryFile(dir=there):
      pass
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise UserError(
      f'cannot write to {path} ({error.strerror}); choose another --workdir'
    ) from error
  _check_others(path, record, run)
  if overwrite:
    return new
  if not record.run_path.exists():
    if record.rows_path.exists() or new.checkpoints.exists():
      raise UserError(
        f'{path} holds rows or checkpoints without {record.run_path.name}, '
        'which would say what made them; choose another --workdir, or '
        '--overwrite to begin anew there'
      )
    return new
  found = read_checked(record.run_path)
  changed = check_config(path, found, run)
  opened = new._replace(run=found, resumes=True)
  if not opened.finished:
    _check_code(path, found, run, allow_code_change)
    found.setdefault('resumed', []).append(
      {
        key: run[key]
        for key in (
          'config_file',
          'code',
          'commit',
          'dirty',
          'packages',
          'device',
        )
      }
      | {
        'changed': changed,
        'time': run['started'],
        'allow_code_change': allow_code_change,
      }
    )
  return opened


def follow_workdir(
  path: pathlib.Path, run: Run, *, member: int | None, resumes: bool
) -> Workdir:
  """The folder for a process that leaves writing to its member's first.

  Args:
    path: the folder.
    run: the provenance, as the first process found or made it.
    member: as `open_workdir`.
    resumes: whether there is a run to go on with.
  """
  return _workdir(SilentRecord, path, run, member)._replace(resumes=resumes)


def _workdir(
  kind: type[Record], path: pathlib.Path, run: Run, member: int | None
) -> Workdir:
  suffix = '' if member is None else f'-{member}'
  return Workdir(
    path,
    kind(path, suffix),
    run,
    checkpoints=path / f'checkpoints{suffix}',
    tensorboard=path / f'tensorboard{suffix}',
    profile=path / f'profile{suffix}',
    predictions=predictions.folder_of(path, suffix),
    resumes=False,
  )


def is_running(path: pathlib.Path, suffix: str = '') -> bool:
  """Whether a process is at work on the run in a folder.

  Args:
    path: the folder.
    suffix: '' or '-I' for a process of member I alone.
  """
  leases = [path / f'lease{suffix}.json', path / FIRST_PHASE / 'lease.json']
  return any(is_held(one, read_lease(one), probe=False) for one in leases)


def _remove(path: pathlib.Path) -> None:
  """Removes a file, a folder, or a link; a `UserError` says if it cannot."""
  try:
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(
      f'cannot remove {path} ({error.strerror}); choose another --workdir'
    ) from error


def _check_others(path: pathlib.Path, record: Record, run: Run) -> None:
  """Refuses a folder with members that do not belong to this run."""
  for _, other in run_files(path):
    if other == record.run_path:
      continue
    try:
      found = read_checked(other)
    except FileNotFoundError:
      continue  # Begun anew since the folder was listed.
    if None in (found['member'], run['member']):
      raise UserError(
        f'{path} holds a run of {_members(found)}, and this is one of '
        f'{_members(run)}; choose another --workdir'
      )
    check_config(path, found, run, anew=False)


def _members(run: Run) -> str:
  member = run['member']
  return 'all members' if member is None else f'member {member} alone'


def check_config(
  path: pathlib.Path, found: Run, run: Run, *, anew: bool = True
) -> dict[str, Any]:
  """Refuses a run of another config.

  Args:
    path: its folder.
    found: its provenance.
    run: the provenance of the run that is wanted: config, its hash, overrides.
    anew: whether --overwrite would help.

  Returns:
    The values, by dotted key, that the run goes on with instead of its own.

  Raises:
    UserError: with the keys that differ, if anything reads them.
  """
  if found['config_hash'] == run['config_hash']:
    return {}
  # As it will be read back: JSON has lists where configs have tuples.
  wanted = json.loads(json.dumps(run['config']))
  old, new = flat(found['config']), flat(wanted)
  differ = [
    key
    for key in sorted(old.keys() | new.keys())
    if _show(old, key) != _show(new, key)
    # Keys that older code did not have yet were not set there, either; those
    # of networks are the config's own.
    and (key in old or key in run['overrides'] or key.startswith('networks.'))
  ]
  fixed = [key for key in differ if key not in _MAY_CHANGE]
  if all(key in new for key in fixed) and not (
    set(fixed) - unread(wanted, fixed).keys()
  ):
    # Nothing reads the others.
    return {key: new[key] for key in differ if key in _MAY_CHANGE}
  changes = [
    f'{key} {_show(old, key)} there, {_show(new, key)} now' for key in fixed
  ]
  raise UserError(
    f'{path} holds a run of another config ({"; ".join(changes)}); choose '
    f'another --workdir{", or --overwrite to begin anew there" * anew}'
  )


def _check_code(path: pathlib.Path, found: Run, run: Run, allow: bool) -> None:
  before = (found.get('resumed') or [found])[-1]
  # Old runs have no hash, and without git there is no commit. Unknown does not
  # mean unchanged.
  known = [key for key in ('code', 'commit') if before.get(key) and run[key]]
  same_code = known and before[known[0]] == run[known[0]]
  there, now = _config_file(before), _config_file(run)
  if allow or (same_code and there == now):
    return
  if same_code:
    raise UserError(
      f'{path} holds a run of {there}, and this config is {now}; put '
      'back the file as it was, or go on with --allow-code-change (it is '
      'recorded), or --overwrite to begin anew'
    )
  raise UserError(
    f'{path} holds a run made by {_code(before)}, and this is {_code(run)}; '
    'take the code that made it, or go on with --allow-code-change (it is '
    'recorded), or --overwrite to begin anew'
  )


def _config_file(version: Mapping[str, Any]) -> str:
  """Names it by its hash, because it may have been moved."""
  file = version.get('config_file')
  if file is None:
    return 'one of experiments/configs'
  return f'a {pathlib.Path(file["path"]).name} of sha256 {file["sha256"][:12]}'


def _code(version: Mapping[str, Any]) -> str:
  """'commit 0123456789ab with uncommitted changes (code 0123456789ab)'."""
  edited = ' with uncommitted changes' if version['dirty'] else ''
  commit = str(version['commit'] or 'unknown')[:12]
  return f'commit {commit}{edited} (code {str(version.get("code"))[:12]})'


def _show(keys: Mapping[str, Any], key: str) -> str:
  return repr(keys[key]) if key in keys else 'not set'
