"""The exchange of a run, from the section `codistill` of its config (§2.1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from codistill import sharding
from codistill.algorithm import Exchange, Peer
from codistill.exchange import memory
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.settings import Settings
from codistill.exchange.rules import Rules
from codistill.models import Model
from codistill.train_state import Network
from experiments import averaging, record
from experiments import config as config_lib
from experiments.errors import UserError, check_choice
from experiments.given import EXCHANGES


def check_members(codistill: ConfigDict, member: int | None) -> tuple[int, ...]:
  """The members of this process, if they can meet the others.

  Raises:
    UserError: if they cannot.
  """
  exchange = codistill.exchange
  check_choice('codistill.exchange', exchange, EXCHANGES)
  if codistill.immediate and exchange == 'checkpoints':
    raise UserError(
      'codistill.immediate is the letter of Algorithm 1, which parallel jobs '
      'cannot follow; set codistill.exchange to memory'
    )
  if member is None:
    return tuple(range(codistill.members))
  if not 0 <= member < codistill.members:
    raise UserError(
      f'--member={member} is out of range: this config has '
      f'{codistill.members} members, numbered from 0'
    )
  if exchange == 'memory':
    raise UserError(
      f'--member={member} cannot meet its peers: codistill.exchange is memory, '
      'which holds all members in one process; use --member=all, or set '
      'codistill.exchange to checkpoints'
    )
  return (member,)


def make_exchange(
  config: ConfigDict,
  *,
  members: tuple[int, ...],
  networks: Sequence[Network],
  mesh: Mesh,
  folder: epath.PathLike | None,
  teachers: Sequence[Peer],
  vocabulary: str,
) -> Exchange:
  """Makes the exchange that the config asks for.

  Args:
    config: of the run.
    members: those of this process.
    networks: of all members.
    mesh: the devices on which peers' weights are wanted.
    folder: where members meet, unless the config says.
    teachers: whom members learn from, if `codistill.exchange` is frozen.
    vocabulary: of their text; peers with another one are left out.

  Raises:
    ValueError: as the constructors.
  """
  codistill = config.codistill
  if codistill.exchange == 'none':
    return memory.FrozenExchange()
  if codistill.exchange == 'frozen':
    return memory.FrozenExchange(tuple(teachers))
  graph = averaging.make_graph(config)
  rules = Rules(
    max_age_steps=averaging.max_age_steps(config),
    max_task_loss_ratio=codistill.max_task_loss_ratio,
  )
  if codistill.exchange == 'memory':
    return memory.InMemoryExchange(
      graph,
      reload_interval_steps=codistill.reload_interval_steps,
      delay_steps=codistill.delay_steps,
      immediate=codistill.immediate,
      rules=rules,
      publish_precision=codistill.publish_precision,
      teacher_precision=codistill.teacher_precision,
    )
  names = (field.name for field in dataclasses.fields(Settings))
  settings = Settings(**{name: codistill[name] for name in names})
  if codistill.synchronous:
    # A member that has lost the steps since its last checkpoint, or since the
    # one before if that is damaged, may ask for what a teacher published then,
    # who in a ring may be ahead by an interval for every member between.
    ahead = codistill.reload_interval_steps + codistill.delay_steps
    steps = 2 * config.checkpoint_interval_steps + codistill.members * ahead
    least = 4 + math.ceil(steps / codistill.reload_interval_steps)
    keep = max(settings.keep_publications, least)
    settings = dataclasses.replace(settings, keep_publications=keep)
  return CheckpointExchange(
    codistill.exchange_dir or folder,
    graph,
    settings,
    members=members,
    like={one.name: _abstract_variables(one.model, mesh) for one in networks},
    networks=[one.name for one in networks],
    vocabulary=vocabulary,
    rules=rules,
    config_hash=record.config_hash(config_lib.in_common(config)),
  )


def _abstract_variables(model: Model, mesh: Mesh) -> Any:
  """A member's variables without numbers, on all devices of the mesh."""
  variables = jax.eval_shape(model.init, jax.random.key(0))
  place = sharding.replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    variables,
  )
