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

from codistill import sharding
from codistill.algorithm import Publications
from codistill.models import Model
from codistill.publication import one_save_at_a_time
from codistill.train_step import TrainState, state_sharding

PyTree = Any


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
      # One would do, unless the process dies while writing its successor.
      preservation_policy=ocp.training.preservation_policies.LatestN(2),
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
    with one_save_at_a_time():
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
    self, abstract: TrainState, model: Model, batch_size: int, mesh: Mesh
  ) -> Restored | None:
    """Loads the newest checkpoint straight into this mesh's shardings.

    Args:
      abstract: shapes of a member's initial state (`jax.eval_shape`).
      model: for the shape of a peer's carry.
      batch_size: likewise.
      mesh: where to put it; may differ from the mesh that saved it.

    Returns:
      Its content, or None if there is no checkpoint.
    """
    latest = self._checkpointer.latest
    if latest is None:
      return None
    metadata = self._checkpointer.metadata(latest.step)
    extra = dict(metadata.custom_metadata)
    layout, notes = extra.pop('layout'), extra.pop('exchange')
    memory = jax.eval_shape(lambda: model.memory(batch_size))
    place, whole = state_sharding(mesh), sharding.replicated(mesh)
    states = {
      int(member): _placed(
        dataclasses.replace(
          abstract, peer_memories={peer: memory for peer in peers}
        ),
        place,
      )
      for member, peers in layout['admitted'].items()
    }
    variables = {
      int(member): {step: _placed(abstract.variables, whole) for step in steps}
      for member, steps in layout['published'].items()
    }
    target = _by_name(states, variables)
    loaded = self._checkpointer.load_checkpointables(latest.step, target)
    return Restored(
      latest.step,
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

  def close(self) -> None:
    """Releases the folder."""
    self._checkpointer.close()


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
