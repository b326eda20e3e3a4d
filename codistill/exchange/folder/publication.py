"""A member's published weights: one Orbax folder a step.

`<exchange>/<member>/<step>/` has parameters and batch statistics, and metadata
about their publication. Orbax gives a folder its final name when it is
complete, so a folder with a number as its name is complete. On object stores,
which cannot rename, Orbax's own marker says so.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from codistill import precision as precision_lib
from codistill.storage import step_folders
from codistill.storage.step_folders import UnreadableError, brief

PyTree = Any


class Notes(NamedTuple):
  """The metadata of a publication.

  Attributes:
    member: the publisher.
    step: number of the member's updates so far.
    incarnation: the publisher's life that it comes from.
    wall_time: seconds since 1970 by the publisher's clock. For people only:
      clocks differ, so the code does not use it.
    task_loss: the publisher's mean φ since its last publication, in nats; None
      if it had made no update.
    config_hash: hash of all settings that members must have in common.
    precision: precision of the weights, one of
      `codistill.precision.PRECISIONS`.
    num_bytes: size of all arrays, uncompressed.
    network: the publisher's network, as `network_note`; '' of older code.
    vocabulary: what its inputs and classes mean, such as a hash of the pieces
      of a text; '' if its number is all that matters.
  """

  member: int
  step: int
  incarnation: int
  wall_time: float
  task_loss: float | None
  config_hash: str
  precision: str
  num_bytes: int
  network: str = ''
  vocabulary: str = ''


class Description(NamedTuple):
  """The metadata, checksum and shapes of a publication.

  Attributes:
    notes: its metadata.
    checksum: of its arrays, as `step_folders.checksum`.
    shapes: of its arrays, by their names.
  """

  notes: Notes
  checksum: int
  shapes: dict[str, tuple[int, ...]]


def network_note(name: str, like: PyTree) -> str:
  """Says which network it is: its name, its size, a hash of its shapes.

  Args:
    name: '' for none.
    like: its variables, or `jax.ShapeDtypeStruct`s of them.
  """
  shapes = _shapes(like)
  size = sum(math.prod(shape) for shape in shapes.values())
  mark = step_folders.checksum_of_json(shapes)
  return f'{name}: {size:,} numbers, shapes {mark:08x}'.removeprefix(': ')


def write(folder: epath.Path, variables: PyTree, notes: Notes) -> None:
  """Publishes; returns when the publication is complete.

  It replaces a publication of an earlier life at the same step.

  Args:
    folder: the member's folder.
    variables: arrays, on the device or not.
    notes: their metadata.
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


def describe(path: epath.Path) -> Description:
  """Reads the description of a publication.

  Orbax opens each array for it, and TensorStore (0.1.86) never gives back some
  of the memory. So call it once.

  Raises:
    UnreadableError: if it is damaged or was removed.
  """
  try:
    metadata = ocp.metadata(path)
    said = dict(metadata.custom_metadata)
    checksum, sealed = said.pop('checksum'), said.pop('notes_checksum', None)
    found = Description(Notes(**said), checksum, _shapes(metadata.metadata))
  except Exception as error:
    raise UnreadableError(f'{path} cannot be read: {brief(error)}') from error
  # Publications of older code have no checksum of the notes.
  if sealed not in (None, step_folders.checksum_of_json(said)):
    raise UnreadableError(f'{path} says something else than was published')
  return found


def load(path: epath.Path, like: PyTree, described: Description) -> PyTree:
  """Loads a publication in the precision that it was published in.

  Args:
    path: path of the publication.
    like: a member's variables, or `jax.ShapeDtypeStruct`s of them.
    described: its description.

  Returns:
    The variables as arrays of the host, encoded as the notes say.

  Raises:
    UnreadableError: one sentence, if it is damaged, was removed, or has other
      numbers or shapes than described or expected.
  """
  kind = described.notes.precision
  if kind not in precision_lib.PRECISIONS:
    raise UnreadableError(f'{path} has an unknown precision: {kind}')
  place = jax.sharding.SingleDeviceSharding(host_device())
  abstract = precision_lib.abstract(like, kind, place)
  if described.shapes != _shapes(abstract):
    raise UnreadableError(f'{path} holds arrays of other shapes than expected')
  try:
    variables = jax.device_get(ocp.load(path, abstract))
  # Orbax and TensorStore raise anything, a bare Exception included.
  except Exception as error:
    raise UnreadableError(f'{path} cannot be loaded: {brief(error)}') from error
  # Another life may have replaced it meanwhile.
  if step_folders.checksum(variables) != described.checksum:
    raise UnreadableError(f'{path} holds other numbers than were published')
  return variables


def host_device() -> jax.Device:
  """Returns the device for work that must not use an accelerator's memory."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return jax.local_devices()[0]  # JAX_PLATFORMS excludes the CPU.


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(
    tree, is_leaf=lambda leaf: hasattr(leaf, 'shape')
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape)
    for path, leaf in leaves
  }
