"""Data sets that are made on first use and kept in the user's cache."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import TypeVar

Opened = TypeVar('Opened')


def cache_folder(cache_dir: str | os.PathLike | None) -> pathlib.Path:
  """Returns `cache_dir`, or `codistill` in the user's cache."""
  if cache_dir is not None:
    return pathlib.Path(cache_dir).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'codistill'


def open_or_make(
  folder: pathlib.Path,
  open_it: Callable[[pathlib.Path], Opened],
  make: Callable[[pathlib.Path], None],
) -> Opened:
  """Opens a folder, after making it if it is missing or incomplete.

  Processes may do so at once: a folder gets its name when it is complete, and
  the first one stays.

  Args:
    folder: in the cache.
    open_it: raises ValueError if the folder is missing or incomplete.
    make: makes it under another name.

  Raises:
    OSError: if it cannot be written.
  """
  try:
    return open_it(folder)
  except ValueError:
    # Missing, or damaged.
    pass
  folder.parent.mkdir(parents=True, exist_ok=True)
  work = pathlib.Path(
    tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent)
  )
  try:
    made = work / 'made'
    make(made)
    try:
      os.rename(made, folder)
    except OSError:
      try:
        open_it(folder)
      except ValueError:
        shutil.rmtree(folder)
        os.rename(made, folder)
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return open_it(folder)
