"""Predictions on a held-out split, stored so that runs can be compared later.

  predictions/labels.npy             int32 [examples]
  predictions/step-600/member-0.npy  float32 [examples, classes]
  predictions/step-600/ensemble.npy  the mean of the members'

For two classes only the probability of class 1 is kept: float32 [examples]. The
order is the split's, without padding. They are plain NumPy files:
`np.load(path, mmap_mode='r')` reads any part of one. In text, every token is an
example.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

# A member's number, or 'ensemble'.
Who = int | str
_FOLDER = 'predictions'


class Stored(NamedTuple):
  """The files of one predictor's predictions at one step, and of the labels."""

  predictions: pathlib.Path
  labels: pathlib.Path

  def open(self) -> tuple[np.ndarray, np.ndarray]:
    """Maps both into memory without reading them.

    Returns:
      float32 [examples] for two classes, else [examples, classes]; and int32
      [examples].

    Raises:
      ValueError: if one is missing or damaged.
    """
    predictions, labels = map(_map, (self.predictions, self.labels))
    if (
      len(predictions) != len(labels)
      or predictions.dtype != np.float32
      or labels.dtype != np.int32
    ):
      raise ValueError(
        f'{self.predictions} and {self.labels} do not belong together; '
        f'remove {self.labels.parent} to go on without them'
      )
    return predictions, labels


def folder_of(workdir: pathlib.Path, suffix: str) -> pathlib.Path:
  """A process's folder of predictions; `suffix` is '' or '-I' of a member."""
  return workdir / f'{_FOLDER}{suffix}'


def find(workdir: pathlib.Path) -> dict[tuple[int, Who], Stored]:
  """The files of all processes of a run, by step and predictor."""
  found = {}
  for path in workdir.glob(f'{_FOLDER}*/step-*/*.npy'):
    step = re.fullmatch(r'step-(\d+)', path.parent.name)
    who = re.fullmatch(r'member-(\d+)|ensemble', path.stem)
    if step and who:
      number = who[0] if who[1] is None else int(who[1])
      labels = path.parent.parent / 'labels.npy'
      found[int(step[1]), number] = Stored(path, labels)

  def order(item):
    step, who = item[0]
    return step, isinstance(who, str), who

  return dict(sorted(found.items(), key=order))


def drop_after(folder: pathlib.Path, step: int) -> None:
  """Removes files of later steps, and files that a kill left unfinished."""
  for path in folder.glob('step-*'):
    if int(path.name.removeprefix('step-')) > step:
      shutil.rmtree(path)
  for path in folder.rglob('*.new'):
    path.unlink()


class Writer:
  """Writes the predictions of one evaluation to disk, a batch at a time.

  A context manager; its end removes files that are not committed.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    step: int,
    whos: Sequence[Who],
    num_examples: int,
  ):
    """Opens a file for each predictor, and one for labels unless there is one.

    Args:
      folder: as `folder_of`.
      step: of the evaluation.
      whos: the predictors, in the order of `write`.
      num_examples: of the split.

    Raises:
      OSError: if they cannot be written.
    """
    self._open = contextlib.ExitStack()

    def begin(path: pathlib.Path) -> _Growing:
      return self._open.enter_context(_Growing(path, num_examples))

    with contextlib.ExitStack() as undo:
      undo.push(self._open)
      at = folder / f'step-{step}'
      at.mkdir(parents=True, exist_ok=True)
      labels = folder / 'labels.npy'
      self._labels = None if labels.exists() else begin(labels)
      self._predictions = [begin(at / f'{_name(who)}.npy') for who in whos]
      undo.pop_all()

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *exception: object) -> None:
    self._open.close()

  def write(
    self,
    labels: Int32[np.ndarray, ' rows'],
    predictions: Sequence[Float32[np.ndarray, ' rows *classes']],
  ) -> None:
    """Appends the examples of a batch.

    Args:
      labels: the right classes.
      predictions: of each predictor.

    Raises:
      OSError: if they cannot be written.
    """
    if self._labels is not None:
      self._labels.append(labels)
    for file, rows in zip(self._predictions, predictions, strict=True):
      file.append(rows)

  def commit(self) -> None:
    """Moves the finished files into place.

    Raises:
      ValueError: if there are more or fewer examples than there should be.
      OSError: if they cannot be written.
    """
    files = [self._labels] if self._labels is not None else []
    for file in (*files, *self._predictions):
      file.commit()


class SilentWriter(Writer):
  """Writes nothing, because another process of the member does."""

  def __init__(self, *arguments: object):
    """Opens nothing."""
    self._open = contextlib.ExitStack()
    self._labels, self._predictions = None, []

  def write(self, *arguments: object) -> None:
    """Writes nothing."""


class _Growing:
  """A .npy file that is written in order and then put in place.

  It is not memory-mapped, because a full disk would then be a bus error.
  """

  def __init__(self, path: pathlib.Path, length: int):
    self._path = path
    self._new = path.with_name(path.name + '.new')
    self._length = length
    self._written = 0
    # Unbuffered, so that nothing is left to fail when it is closed.
    self._file = open(self._new, 'wb', buffering=0)  # noqa: SIM115

  def __enter__(self) -> _Growing:
    return self

  def __exit__(self, *exception: object) -> None:
    self._file.close()
    self._new.unlink(missing_ok=True)

  def append(self, rows: np.ndarray) -> None:
    if self._file.tell() == 0:
      header = {
        'descr': np.lib.format.dtype_to_descr(rows.dtype),
        'fortran_order': False,
        'shape': (self._length, *rows.shape[1:]),
      }
      np.lib.format.write_array_header_1_0(self._file, header)
    self._written += len(rows)
    rest = memoryview(rows.tobytes())
    while rest:
      rest = rest[self._file.write(rest) :]

  def commit(self) -> None:
    if self._written != self._length:
      raise ValueError(
        f'{self._path}: {self._written} of {self._length} examples'
      )
    os.fsync(self._file.fileno())
    os.replace(self._new, self._path)


def _name(who: Who) -> str:
  return who if isinstance(who, str) else f'member-{who}'


def _map(path: pathlib.Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode='r')
  except (OSError, ValueError, EOFError) as error:
    raise ValueError(
      f'{path} is missing or damaged; remove {path.parent} to go on without it'
    ) from error
