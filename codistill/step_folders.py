"""Folders that Orbax writes, one a step: which are whole, and how to save one.

Checkpoints and publications both lie in such folders.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from etils import epath
from orbax.checkpoint import v1 as ocp

# Orbax 0.12 tells what goes on in one process apart by a number that saves and
# loads share ("the current operation"): beside a load, a save may begin to
# write before its folder is there, or wait minutes for it. Folders that are
# made first need no such number.
_FOLDERS_FIRST = ocp.Context()
_FOLDERS_FIRST.asynchronous.create_directories_asynchronously = False
_SAVING = threading.Lock()
# Seconds; a save to a disk that hangs is no danger to another.
_SAVING_S = 60.0


@contextlib.contextmanager
def one_save_at_a_time() -> Iterator[None]:
  """Keeps saves of this process apart, for at most a minute."""
  taken = _SAVING.acquire(timeout=_SAVING_S)
  try:
    with ocp.Context(_FOLDERS_FIRST):
      yield
  finally:
    if taken:
      _SAVING.release()


def finished(folder: epath.Path) -> dict[int, int]:
  """The steps whose folders are whole, and when each was written.

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
