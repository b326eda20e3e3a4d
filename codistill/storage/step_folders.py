"""Saves, lists, checks and removes folders that Orbax writes, one per step.

Checkpoints and publications both lie in such folders.
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from codistill import hosts

# In Orbax 0.12 all saves and loads of a process share one number ("the current
# operation"). A save beside a load may then write before its folder is there,
# or wait minutes for it. Folders that are made first need no such number.
_FOLDERS_FIRST = ocp.Context()
_FOLDERS_FIRST.asynchronous.create_directories_asynchronously = False
_SAVING = threading.Lock()
# Seconds, so that a disk that hangs does not block saves to another.
_SAVING_S = 60.0


class UnreadableError(Exception):
  """A step is damaged, gone, or of another kind; one sentence says so."""


def brief(error: Exception) -> str:
  """An error in a line; Orbax adds pages of specification, or what it read."""
  text = ' '.join(str(error).split())[:120]
  text = ''.join(c if c.isprintable() else '�' for c in text)
  return f'{type(error).__name__} {text}'


def checksum(tree: Any) -> int:
  """Checksum of all numbers, bit for bit; a leaf at a time, to save memory.

  Orbax notices only what it cannot decode, and a flipped bit decodes well.

  Args:
    tree: arrays on any devices; all processes that have parts of them must call
      this at the same point.
  """
  found = 0
  for leaf in jax.tree.leaves(tree):
    leaf = np.ascontiguousarray(hosts.whole(leaf)).reshape(-1)
    found = zlib.crc32(leaf.view(np.uint8), found)
  return found


def checksum_of_json(content: Mapping[str, Any]) -> int:
  """Checksum of JSON, as it will be read back, in any order of its keys."""
  read = json.loads(json.dumps(content))
  return zlib.crc32(json.dumps(read, sort_keys=True).encode())


@contextlib.contextmanager
def one_save_at_a_time() -> Iterator[None]:
  """Makes a save wait for others of this process, for at most a minute."""
  taken = _SAVING.acquire(timeout=_SAVING_S)
  try:
    with ocp.Context(_FOLDERS_FIRST):
      yield
  finally:
    if taken:
      _SAVING.release()


def finished(folder: epath.Path) -> dict[int, int]:
  """The steps with whole folders, and when each was written.

  Returns:
    Seconds since 1970 by the file system's clock, by step; {} if there is no
    such folder.

  Raises:
    OSError: if it cannot be listed.
  """
  try:
    paths = list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return {}
  found = {}
  for path in paths:
    if path.name.isdecimal():
      try:
        stat = path.stat()
      except OSError:
        continue  # Pruned since the folder was listed, or no publication.
      if stat.is_directory:
        found[int(path.name)] = int(stat.mtime)
  return found


def put_out_of_sight(path: epath.Path) -> epath.Path:
  """Hides a step under a name that `tidy` removes; returns the path."""
  hidden = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.removed')
  path.rename(hidden)
  return hidden


def remove(path: epath.Path) -> None:
  """Removes a step; hides it first, so that none is half there.

  Files that cannot be removed, such as those in use on NFS, are left to `tidy`.

  Raises:
    OSError: if it cannot be hidden.
  """
  if not path.exists():
    return
  hidden = put_out_of_sight(path)
  with contextlib.suppress(OSError):
    hidden.rmtree()


def tidy(folder: epath.Path, steps: Iterable[int] = ()) -> str:
  """Removes steps, and all that was left half written or half removed.

  What cannot be removed stays until the next time.

  Returns:
    A sentence on the first that could not be removed; '' if all is tidy.

  Raises:
    OSError: if the folder cannot be listed.
  """
  failed = []

  def attempt(action: Callable[[], None]) -> None:
    try:
      action()
    # A disk may raise anything, which is no reason to stop.
    except Exception as error:
      failed.append(brief(error))

  for step in steps:
    attempt(lambda path=folder / str(step): remove(path))
  for path in folder.iterdir():
    if path.name.endswith(('.orbax-checkpoint-tmp', '.removed')):
      attempt(path.rmtree)
  return f'cannot tidy up {folder}: {failed[0]}' if failed else ''
