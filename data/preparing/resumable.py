"""A folder that takes long to make: begun, gone on with, finished.

It is called `DIR.partial` until all of it is there. In it are `plan.json`, what
it is made of, and `state.json`, how far that has come: another run with the
same plan goes on from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

# How far a run has come, and of what: apart, for the first is written often.
STATE = 'state.json'
PLAN = 'plan.json'
LOCK = 'lock'
MANIFEST = 'manifest.json'


class PreparationError(Exception):
  """It cannot be made; the message is for the user."""


def partial_of(folder: pathlib.Path) -> pathlib.Path:
  """Where a folder is written before it is finished."""
  return folder.with_name(f'{folder.name}.partial')


def is_finished(output: pathlib.Path) -> bool:
  """Whether a folder is there, and not something else.

  Raises:
    PreparationError: for something else.
  """
  if output.exists() and not output.is_dir():
    raise PreparationError(f'{output} is a file: choose another --output.')
  if not output.exists() or not any(output.iterdir()):
    return False
  if not (output / MANIFEST).exists():
    raise PreparationError(
      f'{output} has something else in it: choose another --output.'
    )
  return True


def check_finished(
  output: pathlib.Path, plan: dict[str, Any], manifest: dict[str, Any]
) -> None:
  """Refuses a finished folder that was made from something else.

  Raises:
    PreparationError: says what is different.
  """
  if difference := _difference(plan, manifest):
    raise PreparationError(
      f'{output} was made from other input or with other settings '
      f'({difference}): choose another --output, or --overwrite it.'
    )


@contextlib.contextmanager
def locked(partial: pathlib.Path, output: pathlib.Path) -> Iterator[None]:
  """Keeps others out of a folder that is not finished.

  Raises:
    PreparationError: if it cannot be written, or somebody else does so.
  """
  try:
    partial.mkdir(parents=True, exist_ok=True)
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


def empty(partial: pathlib.Path) -> None:
  """Removes all but the lock."""
  remove(path for path in partial.iterdir() if path.name != LOCK)


def remove(paths: Iterable[pathlib.Path]) -> None:
  """Removes files and folders, those that are there."""
  for path in paths:
    if path.is_dir():
      shutil.rmtree(path)
    else:
      path.unlink(missing_ok=True)


def begin(partial: pathlib.Path, plan: dict[str, Any]) -> dict[str, Any] | None:
  """Writes the plan, or compares it with that of an earlier run.

  Args:
    partial: the folder.
    plan: what is to be made: 'settings' and 'packages', dicts whose values may
      be dicts of further settings; and lists of 'inputs' and the like, each
      with 'size' and 'key'; their names do not count.

  Returns:
    The state in which an earlier run left it, None if none did.

  Raises:
    PreparationError: if the plans differ.
  """
  try:
    theirs = json.loads((partial / PLAN).read_text(encoding='utf-8'))
  except FileNotFoundError:
    # What is there, if anything, may be of another plan.
    empty(partial)
    write(partial / PLAN, json.dumps(plan).encode())
    return None
  if difference := _difference(plan, theirs):
    raise PreparationError(
      f'{partial} was begun from other input or with other settings '
      f'({difference}): go on with those, choose another --output, or begin '
      'anew with --overwrite.'
    )
  try:
    return json.loads((partial / STATE).read_text(encoding='utf-8'))
  except FileNotFoundError:
    return None


def write_state(partial: pathlib.Path, state: dict[str, Any]) -> None:
  """Says how far a run has come."""
  write(partial / STATE, json.dumps(state).encode())


def write(path: pathlib.Path, content: bytes) -> None:
  """All of it or nothing."""
  new = path.with_name(f'{path.name}.new')
  with open(new, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(new, path)


def finish(
  partial: pathlib.Path,
  folder: pathlib.Path,
  manifest: dict[str, Any],
  leave_out: Iterable[str],
) -> None:
  """Writes the manifest and gives the folder its name: now it is finished.

  Args:
    partial: the folder as it is.
    folder: as it is to be; must not exist.
    manifest: what is in it.
    leave_out: names in `partial` of what was needed to write it.

  Raises:
    OSError: if `folder` exists and has something in it.
  """
  text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
  write(partial / MANIFEST, text.encode())
  os.rename(partial, folder)
  # Not before: without them an interrupted run could not go on.
  remove(folder / name for name in leave_out)


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
  """Names what differs in two plans, None if nothing does."""
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
  """Settings of settings beside the others."""
  flat = {}
  for name, value in settings.items():
    flat |= value if isinstance(value, dict) else {name: value}
  return flat
