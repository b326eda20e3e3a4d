"""Folders that Orbax wrote, damaged."""

from __future__ import annotations

import abc
import pathlib
import shutil
import sys
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath

from codistill import sharding
from codistill.exchange.folder import publication
from codistill.storage import checkpoint
from codistill.storage.step_folders import UnreadableError
from tests.fuzz.reader import Reader, Seed, check_sentence

# As pytest has it, for what a test of checkpoints saves.
sys.path.append(str(pathlib.Path(__file__).parents[1]))
import test_checkpoint


class Folder(Reader):
  """A folder, damaged as an input says, in six bytes a damage.

  They are the number of the file, the kind of damage, where it is (two bytes),
  a byte to write and how often.
  """

  def __init__(self, folder: pathlib.Path):
    self._whole, self._damaged = folder / 'whole', folder / 'damaged'
    self.write(self._whole)
    self._files = sorted(
      path.relative_to(self._whole)
      for path in self._whole.rglob('*')
      if path.is_file()
    )

  @abc.abstractmethod
  def write(self, folder: pathlib.Path) -> None:
    """Makes the folder."""

  @abc.abstractmethod
  def read(self, folder: pathlib.Path, damaged: set[pathlib.Path]) -> int:
    """Reads it, and compares what is read.

    Args:
      folder: the folder.
      damaged: files that are not as they were, by their path in the folder.

    Returns:
      The step that is read; 0 if none can be.
    """

  def seeds(self) -> Iterator[Seed]:
    yield Seed(b'')
    for number in range(len(self._files)):
      for kind in range(_KINDS):
        yield Seed(bytes([number, kind, 99, 0, 7, 1]))

  def try_one(self, data: bytes) -> int:
    shutil.rmtree(self._damaged, ignore_errors=True)
    shutil.copytree(self._whole, self._damaged)
    damaged = set()
    for start in range(0, len(data) - 5, 6):
      number, kind, high, low, value, count = data[start : start + 6]
      path = self._files[number % len(self._files)]
      place = (256 * high + low) / (1 << 16)
      _damage(self._damaged / path, kind % _KINDS, place, bytes([value]), count)
      damaged.add(path)
    return self.read(self._damaged, damaged)


_KINDS = 6


def _damage(path, kind, place, value, count):
  """Damages a file at a place between 0, its start, and 1, its end."""
  if not path.exists():
    return
  content = bytearray(path.read_bytes())
  at = int(place * len(content))
  match kind:
    case 0:
      path.unlink()
      return
    case 1:
      del content[at:]
    case 2:
      content[at : at + 1] = value
    case 3:
      content[at:at] = count * value
    case 4:
      del content[at : at + count]
    case _:
      content[at : at + count] = bytes(len(content[at : at + count]))
  path.write_bytes(content)


class Publication(Folder):
  """What is read of a publication is what was published."""

  def write(self, folder: pathlib.Path) -> None:
    state = test_checkpoint.state_of(0)
    self._published = jax.device_get(state.variables)
    self._notes = publication.Notes(
      member=1,
      step=12,
      incarnation=1,
      wall_time=1.5,
      task_loss=0.5,
      config_hash='a hash',
      precision='float32',
      num_bytes=160,
      network='a network',
      vocabulary='a vocabulary',
    )
    publication.write(epath.Path(folder), self._published, self._notes)

  def read(self, folder: pathlib.Path, damaged: set[pathlib.Path]) -> int:
    try:
      path = epath.Path(folder) / '12'
      described = publication.describe(path)
      found = publication.load(path, self._published, described)
    except UnreadableError as error:
      check_sentence(error)
      assert damaged
      return 0
    assert described.notes == self._notes
    _assert_equal(found, self._published)
    return self._notes.step


class Checkpoint(Folder):
  """Of two checkpoints the newest that is whole is read, as it was saved."""

  _EXTRA = {'active': [0], 'seconds': 1.5}  # noqa: RUF012

  def write(self, folder: pathlib.Path) -> None:
    self._saved = {step: test_checkpoint.at(step) for step in (4, 8)}
    self._published = {0: {3: test_checkpoint.state_of(5).variables}}
    checkpoints = checkpoint.Checkpoints(folder)
    for step, states in self._saved.items():
      test_checkpoint.save(
        checkpoints, states, self._published, self._EXTRA, step
      )

  def read(self, folder: pathlib.Path, damaged: set[pathlib.Path]) -> int:
    least = max(
      self._saved.keys() - {int(one.parts[0]) for one in damaged}, default=0
    )
    try:
      found = checkpoint.read_newest(
        folder,
        lambda member: jax.eval_shape(test_checkpoint.state_of, member),
        sharding.make_mesh(1),
        'float32',
      )
    except UnreadableError as error:
      check_sentence(error)
      assert not least
      return 0
    assert found.step >= least
    assert found.extra == self._EXTRA
    assert len(found.passed_over) == (found.step == 4)
    _assert_equal(found.states, self._saved[found.step])
    _assert_equal(found.publications.variables, self._published)
    return found.step


def _assert_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)
