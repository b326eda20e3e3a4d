"""Paths as users write them."""

from __future__ import annotations

import argparse
import os
import pathlib

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
  """An absolute path, or a URL as it is: TFDS also reads from buckets."""
  return text if '://' in text else str(local_path(text))


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
