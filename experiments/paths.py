"""Paths as users write them."""

from __future__ import annotations

import argparse
import os
import pathlib


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
