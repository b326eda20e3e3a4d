"""A member's weights as its peers find them: one Orbax folder a step.

`<exchange>/<member>/<step>/` holds parameters and batch statistics, and in its
metadata who published what when. Orbax renames a folder to its name when it is
complete, so what has a number for a name is whole; on object stores, which
cannot rename, its own mark says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from codistill import precision as precision_lib
from codistill import step_folders
from codistill.step_folders import UnreadableError, brief

PyTree = Any


class Notes(NamedTuple):
  """What a publication says of itself.

  Attributes:
    member: whose weights these are.
    step: the updates they have behind them.
    incarnation: which life of the publisher's job it is from.
    wall_time: seconds since 1970 by the publisher's clock. For people; nothing
      is decided by it, because clocks differ.
    task_loss: the publisher's mean φ since its last publication, in nats; None
      if it had made no update.
    config_hash: of all that must be the same for members to understand each
      other.
    precision: of the weights, one of `codistill.precision.PRECISIONS`.
    num_bytes: of all arrays, uncompressed.
  """

  member: int
  step: int
  incarnation: int
  wall_time: float
  task_loss: float | None
  config_hash: str
  precision: str
  num_bytes: int


def write(folder: epath.Path, variables: PyTree, notes: Notes) -> None:
  """Publishes; returns when all of it is there for others.

  What an earlier life of the job published at this step is replaced.

  Args:
    folder: of the member.
    variables: arrays, on the device or not.
    notes: said with them.
  """
  path = folder / str(notes.step)
  step_folders.remove(path)
  said = {
    **notes._asdict(),
    'checksum': step_folders.checksum(variables),
    'notes_checksum': step_folders.checksum_of_json(notes._asdict()),
  }
  with step_folders.one_save_at_a_time():
    ocp.save(path, variables, custom_metadata=said)


def read_notes(path: epath.Path) -> Notes:
  """What a publication says of itself.

  Raises:
    UnreadableError: if it is damaged or gone.
  """
  return _read(path)[0]


def load(path: epath.Path, like: PyTree) -> tuple[PyTree, Notes]:
  """Loads a publication in the precision that it was published in.

  Args:
    path: of the publication.
    like: a member's variables, or `jax.ShapeDtypeStruct`s of them.

  Returns:
    The variables as arrays of the host, encoded as the notes say, and the notes
    that belong to just these.

  Raises:
    UnreadableError: if it is damaged, gone, replaced meanwhile, or of other
      shapes: one sentence.
  """
  before, checksum, found = _read(path)
  if before.precision not in precision_lib.PRECISIONS:
    raise UnreadableError(
      f'{path} is in a precision that is not known here: {before.precision}'
    )
  place = jax.sharding.SingleDeviceSharding(host_device())
  abstract = precision_lib.abstract(like, before.precision, place)
  if found != _shapes(abstract):
    raise UnreadableError(f'{path} holds arrays of other shapes than expected')
  try:
    variables = jax.device_get(ocp.load(path, abstract))
  # Orbax and TensorStore raise anything, a bare Exception included.
  except Exception as error:
    raise UnreadableError(f'{path} cannot be loaded: {brief(error)}') from error
  if step_folders.checksum(variables) != checksum:
    raise UnreadableError(f'{path} holds other numbers than were published')
  if read_notes(path) != before:
    raise UnreadableError(f'{path} was replaced while it was read')
  return variables, before


def host_device() -> jax.Device:
  """Where arrays can be worked on without taking an accelerator's memory."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]  # It was told to have no other.


def _read(
  path: epath.Path,
) -> tuple[Notes, int, dict[str, tuple[int, ...]]]:
  """Notes, the checksum, and the shapes of the arrays by their names."""
  try:
    metadata = ocp.metadata(path)
    said = dict(metadata.custom_metadata)
    checksum, sealed = said.pop('checksum'), said.pop('notes_checksum', None)
    found = Notes(**said), checksum, _shapes(metadata.metadata)
  except Exception as error:
    raise UnreadableError(f'{path} cannot be read: {brief(error)}') from error
  # Publications from before it was written have none.
  if sealed not in (None, step_folders.checksum_of_json(said)):
    raise UnreadableError(f'{path} says something else than was published')
  return found


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda leaf: hasattr(leaf, 'shape')
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape)
    for path, leaf in leaves
  }
