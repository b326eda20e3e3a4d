"""Finds prepared TFDS sets; reading them needs no TensorFlow."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any


class NotPreparedError(FileNotFoundError):
  """A folder has no such TFDS set; the message says what to run."""


def open_builder(
  name: str,
  data_dir: str | os.PathLike | None,
  *,
  folder_key: str,
  others: Iterable[str] = (),
) -> Any:
  """Opens a set that is prepared as ArrayRecord, as TFDS's builder.

  Args:
    name: TFDS's name of it, with or without a version.
    data_dir: folder of TFDS sets; None for $TFDS_DATA_DIR, or TFDS's default.
    folder_key: what names this folder, for messages.
    others: names of sets outside TFDS, to suggest for a misspelt one.

  Raises:
    NotPreparedError: if it is not prepared, or not as ArrayRecord.
    ValueError: if there is no such set.
  """
  # The import takes half a second, and not every data set needs it.
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  # AssertionError for a version that TFDS does not have.
  except (ValueError, AssertionError):
    known = [*others, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, known)
    hint = f': did you mean {" or ".join(near)}?' if near else '.'
    raise ValueError(f'There is no set called {name!r}{hint}') from None
  except ImportError as error:
    raise ValueError(
      f'TFDS cannot open {name!r} without the package {error.name}.'
    ) from error
  prepare = f'run `python -m scripts.prepare_images {name}'
  if not builder.info.initialized:
    raise NotPreparedError(
      f'{name} is not prepared in {builder.data_dir}: {prepare}` once, or set '
      f'{folder_key} to the folder that contains it.'
    )
  formats = sorted(form.value for form in builder.info.available_file_formats())
  if 'array_record' not in formats:
    raise NotPreparedError(
      f'{name} is prepared in {builder.data_dir} as {" and ".join(formats)}, '
      f'not as array_record: {prepare} --data_dir=DIR` with another folder, '
      f'and set {folder_key} to it.'
    )
  return builder
