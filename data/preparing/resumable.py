"""A folder that takes long to make: begun, continued, finished.

It is called `DIR.partial` until it is complete. There, `plan.json` says what it
is made of and `state.json` how far it is: another run with the same plan
continues from there. A folder to be replaced stays until the new one is
complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

# Apart from the plan, because the state is written often.
STATE = 'state.json'
PLAN = 'plan.json'
LOCK = 'lock'
MANIFEST = 'manifest.json'
# The folder that is replaced, in its last moments.
REPLACED = 'replaced'
# What a finished folder lacks. The plan goes last: `finished` looks for it.
LEFT_OUT = (STATE, REPLACED, LOCK, PLAN)


class PreparationError(Exception):
  """The preparation is impossible; the message is for the user."""


def real(folder: pathlib.Path) -> pathlib.Path:
  """Follows links: a folder cannot get the name of one."""
  return pathlib.Path(os.path.realpath(folder))


def partial_of(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder's path while it is unfinished."""
  folder = real(folder)
  return folder.with_name(f'{folder.name}.partial')


def finished(
  output: pathlib.Path,
  plan: dict[str, Any],
  leave_out: Iterable[str],
  overwrite: bool,
) -> dict[str, Any] | None:
  """Returns the manifest of a finished folder; None if it is to be made.

  Args:
    output: its path, after `real`.
    plan: as for `begin`.
    leave_out: as for `finish`; a run that was interrupted in its last moments
      has left them.
    overwrite: makes it in any case, unless such a run with this plan did.

  Raises:
    PreparationError: if something else is there, or it was made from something
      else.
  """
  if os.path.lexists(output) and not output.is_dir():
    raise PreparationError(f'{output} is no folder: choose another --output.')
  if output.exists() and any(output.iterdir()):
    manifest, left = _read(output / MANIFEST), _read(output / PLAN)
    # Other programs have manifests, too; theirs is not to be overwritten.
    damaged = manifest is None and (output / MANIFEST).exists()
    if not damaged and 'settings' not in (manifest or {}):
      raise PreparationError(
        f'{output} has something else in it: choose another --output.'
      )
    if not overwrite and damaged:
      raise PreparationError(
        f'{output / MANIFEST} is damaged: choose another --output, or '
        '--overwrite it.'
      )
    if not overwrite and (difference := _difference(plan, manifest)):
      raise PreparationError(
        f'{output} was made from other input or with other settings '
        f'({difference}): choose another --output, or --overwrite it.'
      )
    if not overwrite or (left is not None and not _difference(plan, left)):
      remove(output / name for name in leave_out)
      return manifest
  if os.path.ismount(output):
    raise PreparationError(
      f'A disk is mounted at {output}, so no other folder can get this name: '
      'choose a folder on that disk as --output.'
    )
  return None


def open_manifest(
  folder: pathlib.Path,
  format: str,
  *,
  what: str,
  command: str,
  error: type[Exception],
) -> dict[str, Any]:
  """Reads the manifest of a finished folder.

  Args:
    folder: its path.
    format: of the manifest.
    what: the folder's content, for messages.
    command: what makes it, without --output.
    error: raised if the folder is missing, unfinished or of another format; the
      message says what to do.
  """
  path = folder / MANIFEST
  if path.exists():
    manifest = _read(path)
    if manifest is None or manifest.get('format') != format:
      raise error(
        f'{path} describes no {what} ({format}): prepare it again, in another '
        'folder.'
      )
    return manifest
  if partial_of(folder).is_dir():
    raise error(
      f'{folder} is not finished: run the same command again to continue.'
    )
  raise error(
    f'There is no {what} in {folder}: make it with `python -m {command} '
    f'--output={shlex.quote(str(folder))}`.'
  )


@contextlib.contextmanager
def locked(partial: pathlib.Path, output: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of an unfinished folder.

  Raises:
    PreparationError: if it cannot be written, has something else in it, or
      another run is making it.
  """
  try:
    partial.mkdir(parents=True, exist_ok=True)
    if any(partial.iterdir()) and not (partial / LOCK).exists():
      raise PreparationError(
        f'{partial} has something else in it: choose another --output.'
      )
    (partial / LOCK).touch()
  except OSError as error:
    raise PreparationError(
      f'{partial} cannot be written ({error.strerror}): choose another '
      '--output.'
    ) from error
  with open(partial / LOCK, 'ab') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise PreparationError(
        f'Another run is making {output}: wait for it, or end it.'
      ) from None
    yield


def remove(paths: Iterable[pathlib.Path]) -> None:
  """Removes files and folders; missing ones are ignored."""
  for path in paths:
    if path.is_dir():
      shutil.rmtree(path)
    # On a disk that cannot be written even removing nothing is an error.
    elif path.exists():
      path.unlink(missing_ok=True)


def begin(
  partial: pathlib.Path,
  output: pathlib.Path,
  plan: dict[str, Any],
  overwrite: bool,
) -> dict[str, Any] | None:
  """Writes the plan, or compares it with an earlier run's.

  Args:
    partial: the folder.
    output: the folder that it becomes.
    plan: 'settings' and 'packages', dicts with values that may be dicts of
      further settings; and lists of 'inputs' and the like, each with 'size' and
      'key'; their names do not count.
    overwrite: drops what was begun with another plan.

  Returns:
    The state that an earlier run with this plan left; None without one.

  Raises:
    PreparationError: if the plans differ.
  """
  theirs = _read(partial / PLAN)
  difference = None if theirs is None else _difference(plan, theirs)
  if theirs is None or (difference and overwrite):
    # What was to be replaced stays until there is something in its place.
    if (partial / REPLACED).exists() and not output.exists():
      os.rename(partial / REPLACED, output)
    # The plan goes first: without its files a later run must not go on.
    others = (
      path for path in partial.iterdir() if path.name not in (LOCK, PLAN)
    )
    remove((partial / PLAN, *others))
    write(partial / PLAN, json.dumps(plan).encode())
    return None
  if difference:
    raise PreparationError(
      f'{partial} was begun from other input or with other settings '
      f'({difference}): continue with those, choose another --output, or begin '
      'anew with --overwrite.'
    )
  return _read(partial / STATE)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Reads a file that `write` wrote; None if it is missing or damaged."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, ValueError, RecursionError):
    return None
  return content if isinstance(content, dict) else None


def write_state(partial: pathlib.Path, state: dict[str, Any]) -> None:
  """Records how far a run is."""
  write(partial / STATE, json.dumps(state).encode())


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file completely or not at all."""
  new = path.with_name(f'{path.name}.new')
  with open(new, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def set_aside(output: pathlib.Path, partial: pathlib.Path) -> None:
  """Moves a folder that is to be replaced into the one that replaces it.

  At once, because a folder that is half removed looks like something else.
  """
  if output.exists():
    remove([partial / REPLACED])
    os.rename(output, partial / REPLACED)


def finish(
  partial: pathlib.Path,
  folder: pathlib.Path,
  manifest: dict[str, Any],
  leave_out: Iterable[str],
) -> None:
  """Writes the manifest and gives the finished folder its name.

  Args:
    partial: the unfinished folder.
    folder: its final path; must not exist, see `set_aside`.
    manifest: content of the manifest.
    leave_out: names in `partial` of files that only the preparation needed,
      LEFT_OUT last.

  Raises:
    OSError: if `folder` exists and is not empty.
  """
  text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
  write(partial / MANIFEST, text.encode())
  os.rename(partial, folder)
  # Not earlier: an interrupted run needs them to continue.
  remove(folder / name for name in leave_out)


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
  """Names the difference of two plans; None if there is none."""
  ours = json.loads(json.dumps(ours))
  for kind in ours:
    if kind.endswith('inputs') and (
      _keys(ours[kind]) != _keys(theirs.get(kind, []))
    ):
      return 'other files'
  names = []
  for kind in ('settings', 'packages'):
    mine, old = _flat(ours[kind]), _flat(theirs.get(kind, {}))
    names += [
      f'{name} {old.get(name)!r}'
      for name in mine
      if mine[name] != old.get(name)
    ]
  return ', '.join(names) or None


def _keys(inputs: list[dict[str, Any]]) -> list[tuple[int, str]]:
  return [(one['size'], one['key']) for one in inputs]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
  """Moves nested settings to the top level."""
  flat = {}
  for name, value in settings.items():
    flat |= value if isinstance(value, dict) else {name: value}
  return flat
