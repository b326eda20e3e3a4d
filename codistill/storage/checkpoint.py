"""Checkpoints for exact resumption: members' states and their stale copies.

A checkpoint has all members of a process after the same step, and everything
that the exchange has published by then, in one Orbax step folder: it is
complete or absent. A checksum detects damage; a damaged checkpoint is passed
over for the one before it.

The item of the states is called `state`, because Orbax loads that name by
default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from codistill import hosts, precision, sharding
from codistill.algorithm import Publications
from codistill.storage import step_folders
from codistill.storage.step_folders import UnreadableError, brief
from codistill.train_state import TrainState, state_sharding

PyTree = Any
# A second one, in case the process dies while it writes the newest.
_KEPT = 2


class Restored(NamedTuple):
  """A checkpoint's content.

  Attributes:
    step: number of updates of every active member.
    states: by member number.
    publications: the exchange's publications.
    extra: the JSON that was saved with it.
    passed_over: a sentence for each newer checkpoint that was passed over,
      newest first.
  """

  step: int
  states: dict[int, TrainState]
  publications: Publications
  extra: dict[str, Any]
  passed_over: tuple[str, ...] = ()


class Checkpoints:
  """The checkpoints of one process in one folder; keeps the newest two."""

  def __init__(self, directory: epath.PathLike):
    """Opens or makes the folder; removes a killed process's unfinished saves.

    Args:
      directory: absolute path, or an object store that Orbax supports.
    """
    self._directory = epath.Path(directory)
    # Those that are known to be good, oldest first.
    self._good: list[int] = []
    self._has_complained = False
    if hosts.is_first():
      self._directory.mkdir(parents=True, exist_ok=True)
      step_folders.tidy(self._directory)

  def save(
    self,
    step: int,
    states: Mapping[int, TrainState],
    publications: Publications,
    extra: Mapping[str, Any],
  ) -> str:
    """Writes a checkpoint; returns when it is complete.

    It waits because the next update donates these buffers.

    Args:
      step: the members' number of updates; a checkpoint that is already there
        at this step is replaced.
      states: by member number.
      publications: the exchange's publications.
      extra: JSON; keys `layout`, `exchange` and `checksum` are reserved.

    Returns:
      A sentence, the first time that older ones cannot be removed; else ''.
    """
    variables = publications.variables
    layout = {
      'admitted': {str(m): sorted(s.peer_memories) for m, s in states.items()},
      'published': {str(m): sorted(p) for m, p in variables.items()},
    }
    said = {**extra, 'layout': layout, 'exchange': publications.notes}
    items = _by_name(states, variables)
    checksum = _checksum(items, said)
    path = self._directory / str(step)
    if hosts.is_first():
      step_folders.remove(path)
    with step_folders.one_save_at_a_time():
      ocp.save_checkpointables(
        path, items, custom_metadata={**said, 'checksum': checksum}
      )
    self._good = [*(one for one in self._good if one != step), step][-_KEPT:]
    return self._tidy() if hosts.is_first() else ''

  def restore(
    self,
    abstract: Callable[[int], TrainState],
    mesh: Mesh,
    teacher_precision: str,
    why_not: Callable[[int], str] = lambda step: '',
  ) -> Restored | None:
    """Loads the newest good checkpoint straight into this mesh's shardings.

    Args:
      abstract: a member's number → shapes of its initial state
        (`jax.eval_shape`), with the zero carries of the peers that it may have.
        Carries that are not there come back as nested lists and dicts.
      mesh: where to put it; may differ from the mesh that saved it.
      teacher_precision: precision of the publications.
      why_not: step → reason for not using that step, '' for none; the same in
        all processes.

    Returns:
      Its content, or None if there is no checkpoint.

    Raises:
      UnreadableError: as in `read_newest`.
    """
    restored = read_newest(
      self._directory, abstract, mesh, teacher_precision, why_not
    )
    self._good = [] if restored is None else [restored.step]
    return restored

  def leave_behind(self, last: int) -> None:
    """Hides the checkpoints after a step, for a run that continues from it.

    Their course differs from the steps that follow now, so they must not return
    once there are rows of these.
    """
    if hosts.is_first():
      for step in step_folders.finished(self._directory):
        if step > last:
          step_folders.put_out_of_sight(self._directory / str(step))

  def _tidy(self) -> str:
    """Removes all but the newest good ones; a failure is left to the next time.

    With Orbax's own policies, a failure would end the run.
    """
    try:
      there = step_folders.finished(self._directory)
      why = step_folders.tidy(self._directory, there.keys() - self._good)
    except OSError as error:
      why = f'cannot tidy up {self._directory}: {brief(error)}'
    if not why or self._has_complained:
      return ''
    self._has_complained = True
    return f'{why}; going on, and trying again at each checkpoint'


def read_newest(
  directory: epath.PathLike,
  abstract: Callable[[int], TrainState],
  mesh: Mesh,
  teacher_precision: str,
  why_not: Callable[[int], str] = lambda step: '',
) -> Restored | None:
  """Loads the newest good checkpoint of a process that may be at work.

  Changes nothing. All processes of a member get the same one.

  Args:
    directory: absolute path of the checkpoints.
    abstract: see `Checkpoints.restore`.
    mesh: see there.
    teacher_precision: see there.
    why_not: see there.

  Returns:
    Its content, or None if there is no finished checkpoint or no such folder.

  Raises:
    UnreadableError: if there are checkpoints but none is good, because they are
      damaged, do not fit or are refused by `why_not`.
  """
  directory = epath.Path(directory)
  passed_over: dict[int, str] = {}
  while left := sorted(_steps(directory) - passed_over.keys()):
    step = left[-1]
    path = directory / str(step)
    if why := why_not(step):
      passed_over[step] = f'{path} cannot be used: {why}'
      continue
    try:
      restored = _load(path, step, abstract, mesh, teacher_precision)
    except UnreadableError as error:
      passed_over[step] = str(error)
    else:
      # If it was removed during the read, some of its numbers may be missing.
      if step in _steps(directory):
        return restored._replace(passed_over=tuple(passed_over.values()))
    if step not in _steps(directory):
      passed_over.pop(step, None)
  if passed_over:
    raise UnreadableError('; '.join(passed_over.values()))
  return None


def save_variables(path: epath.PathLike, variables: PyTree) -> None:
  """Writes parameters and batch statistics alone, for any kind of device.

  Args:
    path: absolute path of the folder to make.
    variables: one member's variables.
  """
  with step_folders.one_save_at_a_time():
    # From the host: a device's arrays can be loaded onto that device only.
    ocp.save(epath.Path(path), jax.device_get(variables))


def _steps(directory: epath.Path) -> set[int]:
  """Returns the steps with a checkpoint, as the first process sees them."""
  return set(hosts.tell(sorted(step_folders.finished(directory))))


def _load(
  path: epath.Path,
  step: int,
  abstract: Callable[[int], TrainState],
  mesh: Mesh,
  teacher_precision: str,
) -> Restored:
  """Loads one checkpoint into a mesh's shardings, in all processes or none."""
  failed = None
  try:
    loaded, said, checksum = _load_items(
      path, abstract, mesh, teacher_precision
    )
  # Orbax and TensorStore raise anything, a bare Exception included.
  except Exception as error:
    if hosts.lost(error):
      raise
    failed = error
  if hosts.any_says(failed is not None):
    why = brief(failed) if failed else 'another process could not'
    raise UnreadableError(
      f'{path} is damaged or does not fit ({why})'
    ) from failed
  # All processes gather all numbers, so one process's finding holds for all.
  if hosts.any_says(
    checksum is not None and _checksum(loaded, said) != checksum
  ):
    raise UnreadableError(f'{path} is damaged: it is not what was saved')
  layout, notes = said.pop('layout'), said.pop('exchange')
  states, variables = loaded['state'], loaded.get('publications', {})
  return Restored(
    step,
    {
      int(member): dataclasses.replace(
        states[member],
        peer_memories={
          peer: states[member].peer_memories[str(peer)] for peer in peers
        },
      )
      for member, peers in layout['admitted'].items()
    },
    Publications(
      {
        int(member): {step: variables[member][str(step)] for step in steps}
        for member, steps in layout['published'].items()
      },
      notes,
    ),
    said,
  )


def _load_items(
  path: epath.Path,
  abstract: Callable[[int], TrainState],
  mesh: Mesh,
  teacher_precision: str,
) -> tuple[dict[str, PyTree], dict[str, Any], int | None]:
  """Loads the items by name, the JSON saved with them, and their checksum."""
  found = ocp.checkpointables_metadata(path)
  said = dict(found.custom_metadata)
  checksum = said.pop('checksum', None)
  # Their name before there were checksums.
  name = 'states' if checksum is None else 'state'
  # Of an item whose description is damaged, Orbax says None.
  readable = {key for key, what in found.metadata.items() if what is not None}
  _check_there({name}, readable)

  def admitted(member: str, peers: Sequence[int]) -> TrainState:
    state = abstract(int(member))
    there = found.metadata[name][member]['peer_memories'] if peers else {}
    carries = {
      peer: state.peer_memories.get(peer, _abstract(there.get(str(peer), ())))
      for peer in peers
    }
    return _placed(
      dataclasses.replace(state, peer_memories=carries),
      state_sharding(mesh, state.network),
    )

  def published(member: str, steps: Sequence[int]) -> dict[int, PyTree]:
    variables, whole = (
      abstract(int(member)).variables,
      sharding.replicated(mesh),
    )
    copy = precision.abstract(variables, teacher_precision, whole)
    return dict.fromkeys(steps, copy)

  layout = said['layout']
  items = _by_name(
    {int(m): admitted(m, peers) for m, peers in layout['admitted'].items()},
    {int(m): published(m, steps) for m, steps in layout['published'].items()},
  )
  if checksum is not None:
    _check_there(items.keys(), readable)
    return ocp.load_checkpointables(path, items), said, checksum
  items[name] = items.pop('state')
  loaded = ocp.load_checkpointables(path, items)
  return {**loaded, 'state': loaded[name]}, said, None


def _check_there(wanted: Set[str], readable: Set[str]) -> None:
  """Raises a short error for items that are missing; Orbax's own is long."""
  if missing := wanted - readable:
    raise FileNotFoundError(f'its {min(missing)} cannot be read')


def _checksum(items: dict[str, PyTree], said: Mapping[str, Any]) -> int:
  """Hashes the numbers and the JSON saved with them."""
  of_said = np.uint32(step_folders.checksum_of_json(said))
  return step_folders.checksum([items, of_said])


def _by_name(
  states: Mapping[int, TrainState],
  publications: Mapping[int, Mapping[int, PyTree]],
) -> dict[str, PyTree]:
  """Makes Orbax's view: string keys, and no item without a leaf."""
  items: dict[str, PyTree] = {
    'state': {
      str(member): dataclasses.replace(
        state, peer_memories={str(p): m for p, m in state.peer_memories.items()}
      )
      for member, state in states.items()
    }
  }
  published = {
    str(member): {str(step): variables for step, variables in steps.items()}
    for member, steps in publications.items()
    if steps
  }
  return {**items, 'publications': published} if published else items


def _abstract(stored: PyTree) -> PyTree:
  """Makes abstract arrays of Orbax's description of stored ones."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), stored
  )


def _placed(tree: PyTree, places: PyTree) -> PyTree:
  """Makes abstract arrays with the shardings of a prefix of their tree."""
  return jax.tree.map(
    lambda place, part: jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      part,
    ),
    places,
    tree,
  )
