"""The state of a member: all that its updates change, and its network.

Members may differ in their networks. A state names its own; names mean
something to `codistill.train_step.make_updates` only.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from codistill import sharding
from codistill.models import Model
from codistill.optim import Optimizer
from codistill.rivals import asynchronous

PyTree = Any


class Network(NamedTuple):
  """What a member trains, and how.

  Attributes:
    model: F.
    optimizer: η and its kin.
    name: of its own among the networks of a run.
  """

  model: Model
  optimizer: Optimizer
  name: str = ''


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All of a member that changes, and its key: arrays, and a name.

  Attributes:
    step: updates behind it, int32 [].
    variables: {'params': …, 'batch_stats': …}.
    opt_state: the optimizer's.
    memory: the carry of its own forward pass over its stream.
    peer_memories: a dict by member number of each peer's carry over *this*
      member's stream; kept across reloads of the peer's weights.
    key: of the member's noise (dropout), as uint32 key data; folded with the
      step at each update.
    past: older weights: those of asynchronous SGD, or what an outer optimizer
      keeps (`codistill.rivals.averaging.Outer`); () without.
    network: the name of its `Network`; no leaf, but part of the structure.

  Without shapes in its annotations, because trees of this type also hold
  shardings and abstract arrays.
  """

  step: Any
  variables: PyTree
  opt_state: PyTree
  memory: PyTree
  peer_memories: Any
  key: Any
  past: PyTree
  network: str = dataclasses.field(default='', metadata={'static': True})


def init_state(
  network: Network,
  *,
  batch_size: int,
  init_key: jax.Array,
  noise_key: jax.Array,
  num_async_workers: int,
) -> TrainState:
  """A member before its first update.

  Args:
    network: what the member trains.
    batch_size: of the member's stream, for the carry.
    init_key: typed key of the initial weights.
    noise_key: typed key of everything random in the forward pass.
    num_async_workers: as `make_updates`.

  Returns:
    The state, not yet placed on a mesh.
  """
  model, optimizer, name = network
  variables = model.init(init_key)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    # Jitted, because otherwise each array is a program of its own.
    opt_state=jax.jit(optimizer.init)(variables['params']),
    memory=asynchronous.stack_carries(
      model.memory(batch_size), num_async_workers
    ),
    peer_memories={},
    key=jax.random.key_data(noise_key),
    past=asynchronous.remember(variables['params'], num_async_workers),
    network=name,
  )


def state_sharding(mesh: Mesh, network: str = '') -> TrainState:
  """Where each part of a state lives: carries are split, all else replicated.

  Args:
    mesh: the member's devices.
    network: the name of the member's.

  Returns:
    A prefix of a `TrainState` with a sharding for each field.
  """
  whole, part = sharding.replicated(mesh), sharding.split(mesh)
  return TrainState(whole, whole, whole, part, part, whole, whole, network)


def place_state(state: TrainState, mesh: Mesh) -> TrainState:
  """Puts a member's initial state where `state_sharding` says.

  Args:
    state: the same in every process that the mesh reaches.
    mesh: the member's devices, of one process or several.
  """
  return jax.device_put(state, state_sharding(mesh, state.network))
