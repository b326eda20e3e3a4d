"""Paths as users write them."""

from __future__ import annotations

import argparse
import os
import pathlib

from etils import epath

# The repository.
ROOT = pathlib.Path(__file__).parent.parent
# In a run's folder, that of the first of two phases.
FIRST_PHASE = 'ensemble'
# Keys of a config that name places on this machine.
PATH_KEYS = (
  ('codistill', 'exchange_dir'),
  ('codistill', 'frozen_dir'),
  ('data', 'data_dir'),
  ('data', 'path'),
)


def path_or_url(text: str) -> str:
  """An absolute path, or the URL of a bucket as it is.

  Raises:
    argparse.ArgumentTypeError: for a URL that etils, and so TFDS, cannot read.
  """
  if '://' not in text:
    return str(local_path(text))
  try:
    return epath.Path(text).as_posix()
  except KeyError as error:
    raise argparse.ArgumentTypeError(
      f'{text} is no bucket that can be used; name one that begins with '
      'gs://, or a folder'
    ) from error


def local_path(text: str) -> pathlib.Path:
  """Makes a path absolute and expands ~.

  Raises:
    argparse.ArgumentTypeError: for a URL.
  """
  if '://' in text:
    raise argparse.ArgumentTypeError(
      f'{text} is not on this machine; name a folder that is, such as a '
      'mounted one'
    )
  # Absolute, so that members started elsewhere use the same folder.
  return pathlib.Path(os.path.abspath(os.path.expanduser(text)))
