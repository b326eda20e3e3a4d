"""Paths as users write them."""

from __future__ import annotations

import argparse
import os
import pathlib

# The repository.
ROOT = pathlib.Path(__file__).parent.parent
# Of a config: where something lies on this machine.
PATH_KEYS = (
  ('codistill', 'exchange_dir'),
  ('codistill', 'frozen_dir'),
  ('data', 'data_dir'),
  ('data', 'path'),
)


def path_or_url(text: str) -> str:
  """A path as below, or a URL as it is: TFDS reads from buckets, too."""
  return text if '://' in text else str(local_path(text))


def local_path(text: str) -> pathlib.Path:
  """A path of this machine: absolute, and ~ is the user's home.

  Raises:
    argparse.ArgumentTypeError: for a URL.
  """
  if '://' in text:
    raise argparse.ArgumentTypeError(
      f'{text} is not on this machine; name a folder that is, such as a '
      'mounted one'
    )
  # So that members that are started elsewhere mean the same one.
  return pathlib.Path(os.path.abspath(os.path.expanduser(text)))
