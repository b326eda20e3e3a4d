"""Resume exactly: the members' states and the stale copies they learn from.

A checkpoint holds all members of a process after the same step, with what the
exchange had published by then, in one Orbax step folder: it is there whole or
not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from codistill import precision, sharding, step_folders
from codistill.algorithm import Publications
from codistill.train_step import TrainState, state_sharding

PyTree = Any
# One would do, unless the process dies while writing its successor.
_KEPT = 2


class Restored(NamedTuple):
  """A checkpoint's content.

  Attributes:
    step: the updates that every active member had behind it.
    states: by member number.
    publications: of the exchange.
    extra: the JSON that was saved with it.
  """

  step: int
  states: dict[int, TrainState]
  publications: Publications
  extra: dict[str, Any]


class Checkpoints:
  """The checkpoints of one process in one folder; keeps the newest two."""

  def __init__(self, directory: epath.PathLike):
    """Opens or makes the folder; clears what a killed process left half done.

    Args:
      directory: absolute path, or object store as far as Orbax goes.
    """
    self._checkpointer = ocp.training.Checkpointer(
      epath.Path(directory),
      preservation_policy=ocp.training.preservation_policies.LatestN(_KEPT),
      cleanup_tmp_directories=True,
    )

  def save(
    self,
    step: int,
    states: Mapping[int, TrainState],
    publications: Publications,
    extra: Mapping[str, Any],
  ) -> None:
    """Writes a checkpoint; returns when it is complete.

    It waits because the next update donates these very buffers.

    Args:
      step: the updates behind the members.
      states: by member number.
      publications: of the exchange.
      extra: JSON; keys `layout` and `exchange` are taken.
    """
    variables = publications.variables
    layout = {
      'admitted': {str(m): sorted(s.peer_memories) for m, s in states.items()},
      'published': {str(m): sorted(p) for m, p in variables.items()},
    }
    with step_folders.one_save_at_a_time():
      self._checkpointer.save_checkpointables(
        step,
        _by_name(states, variables),
        custom_metadata={
          **extra,
          'layout': layout,
          'exchange': publications.notes,
        },
      )

  def restore(
    self,
    abstract: TrainState,
    mesh: Mesh,
    teacher_precision: str,
  ) -> Restored | None:
    """Loads the newest checkpoint straight into this mesh's shardings.

    Args:
      abstract: shapes of a member's initial state (`jax.eval_shape`).
      mesh: where to put it; may differ from the mesh that saved it.
      teacher_precision: of the publications.

    Returns:
      Its content, or None if there is no checkpoint.
    """
    latest = self._checkpointer.latest
    if latest is None:
      return None
    return _load(
      latest.path,
      latest.step,
      abstract,
      mesh,
      teacher_precision,
    )

  def close(self) -> None:
    """Releases the folder."""
    self._checkpointer.close()


def read_newest(
  directory: epath.PathLike,
  abstract: TrainState,
  mesh: Mesh,
  teacher_precision: str,
) -> Restored | None:
  """The newest checkpoint of a process that may be at work; changes nothing.

  Args:
    directory: of the checkpoints, absolute.
    abstract: as `Checkpoints.restore`.
    mesh: likewise.
    teacher_precision: likewise.

  Returns:
    Its content, or None if there is no finished checkpoint or no such folder.

  Raises:
    Exception: whatever Orbax raises for a checkpoint that is damaged, or that
      does not fit.
  """
  directory = epath.Path(directory)
  while steps := step_folders.finished(directory):
    newest = max(steps)
    try:
      restored = _load(
        directory / str(newest),
        newest,
        abstract,
        mesh,
        teacher_precision,
      )
    except Exception:
      if newest in _kept(directory):
        raise
      continue
    # What was removed while it was read may have come without all its numbers.
    if newest in _kept(directory):
      return restored
  return None


def save_variables(path: epath.PathLike, variables: PyTree) -> None:
  """Writes parameters and batch statistics alone, for any kind of device.

  Args:
    path: of a folder that is not there yet, absolute.
    variables: of one member.
  """
  with step_folders.one_save_at_a_time():
    # Arrays of the host: those of a device would want just this one back.
    ocp.save(epath.Path(path), jax.device_get(variables))


def _kept(directory: epath.Path) -> list[int]:
  """The steps that the process at work there will not remove next."""
  return sorted(step_folders.finished(directory))[-_KEPT:]


def _load(
  path: epath.Path,
  step: int,
  abstract: TrainState,
  mesh: Mesh,
  teacher_precision: str,
) -> Restored:
  """Loads one checkpoint straight into a mesh's shardings."""
  extra = dict(ocp.checkpointables_metadata(path).custom_metadata)
  layout, notes = extra.pop('layout'), extra.pop('exchange')
  place, whole = state_sharding(mesh), sharding.replicated(mesh)
  states = {
    int(member): _placed(
      dataclasses.replace(
        abstract, peer_memories=dict.fromkeys(peers, abstract.memory)
      ),
      place,
    )
    for member, peers in layout['admitted'].items()
  }
  copy = precision.abstract(abstract.variables, teacher_precision, whole)
  variables = {
    int(member): dict.fromkeys(steps, copy)
    for member, steps in layout['published'].items()
  }
  loaded = ocp.load_checkpointables(path, _by_name(states, variables))
  return Restored(
    step,
    {
      member: _load_state(loaded['states'][str(member)], state)
      for member, state in states.items()
    },
    Publications(
      {
        member: {
          step: loaded['publications'][str(member)][str(step)]
          for step in published
        }
        if published
        else {}
        for member, published in variables.items()
      },
      notes,
    ),
    extra,
  )


def _by_name(
  states: Mapping[int, TrainState],
  publications: Mapping[int, Mapping[int, PyTree]],
) -> dict[str, PyTree]:
  """Orbax's view: string keys, and no item without a leaf."""
  items: dict[str, PyTree] = {
    'states': {
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


def _load_state(loaded: TrainState, target: TrainState) -> TrainState:
  """A loaded state with its peers' memories keyed by number again."""
  return dataclasses.replace(
    loaded,
    peer_memories={
      peer: loaded.peer_memories[str(peer)] for peer in target.peer_memories
    },
  )


def _placed(tree: PyTree, places: PyTree) -> PyTree:
  """Abstract arrays with the shardings of a prefix of their tree."""
  return jax.tree.map(
    lambda place, part: jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      part,
    ),
    places,
    tree,
  )
