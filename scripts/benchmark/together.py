"""Two members updated one after the other, and by one program for both.

One program is the update under `jax.vmap`, with members stacked. It can only be
faster where one member leaves a device idle, so small networks are measured.
The difference of both ways' losses is shown, too; it should be rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from codistill import sharding
from codistill.train_state import place_state
from scripts.benchmark import networks
from scripts.benchmark.measure import Limit, Measure, Measures, in_turn
from scripts.benchmark.networks import Network

TITLE = 'members one by one, and together'
ROUNDS = 'rounds of every update'
MEMBERS = 2
SMALL = {
  'DNN, 64 examples': Network('criteo_codistill:smoke', {'batch_size': 64}),
  'DNN': Network('criteo_codistill:reduced'),
  'small ResNet': Network('imagenet_codistill:reduced'),
  'LSTM, 64 units': Network('lm_codistill:laptop'),
  'LSTM': networks.SMALL['LSTM'],
}
FULL = SMALL


def measure(
  rounds: int, shapes: Mapping[str, Network]
) -> Iterator[list[Measure]]:
  """Times both ways in turn.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: networks by name.

  Yields:
    All measurements so far, after each round.
  """
  found, updates = Measures(), {}
  for name, network in shapes.items():
    for kind, distill in (('burn-in', False), ('codistilling', True)):
      for way, update in _both_ways(network, distill).items():
        updates[name, kind, way] = update
  # Before timing, while both ways start from the same weights.
  losses = {key: update() for key, update in updates.items()}
  for seconds in in_turn(updates, rounds):
    for name in shapes:
      for kind in ('burn-in', 'codistilling'):
        apart = seconds[name, kind, 'one by one']
        both = seconds[name, kind, 'together']
        found.note(f'{name}, {kind}: one by one', 'ms', 1e3 * apart)
        found.note(
          f'{name}, {kind}: together',
          '% of one by one',
          100 * both / apart,
          Limit('≤', 100),
        )
    yield found.all()
  for name in shapes:
    for kind in ('burn-in', 'codistilling'):
      apart, both = (
        losses[name, kind, way] for way in ('one by one', 'together')
      )
      found.note(
        f'{name}, {kind}: losses apart',
        'nats',
        float(jnp.abs(jnp.asarray(apart) - jnp.asarray(both)).max()),
      )
  yield found.all()


def _both_ways(network: Network, distill: bool) -> dict[str, Callable[[], Any]]:
  """Updates of all members; each returns their losses [members]."""
  experiment = network.build()
  mesh = experiment.mesh
  batch = sharding.split_batch(
    experiment.task.made_up_batch(experiment.batch_size, seed=0), mesh
  )
  members = range(MEMBERS)
  network = experiment.networks[0]
  descend = experiment.updates.descends[network.name]

  def start():
    return [place_state(experiment.init(member), mesh) for member in members]

  def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  # The other members' weights, which do not change here.
  others = [
    tuple(
      jax.tree.map(jnp.copy, state.variables)
      for number, state in enumerate(start())
      if number != member and distill
    )
    for member in members
  ]
  memories = [
    tuple(
      experiment.updates.zero_memory(network.model, len(batch['labels']))
      for _ in others[0]
    )
    for _ in members
  ]
  models = (network.model,) * len(others[0])
  states, stacked = start(), stack(start())
  stacked_others, stacked_batch = stack(others), stack([batch] * MEMBERS)
  stacked_memories = stack(memories)
  both = jax.jit(
    jax.vmap(lambda *arguments: descend(*arguments, distill, models)),
    donate_argnums=(0, 3),
  )

  def one_by_one():
    losses = []
    for member in members:
      states[member], metrics, memories[member] = descend(
        states[member],
        batch,
        others[member],
        memories[member],
        distill,
        models,
      )
      losses.append(metrics['task_loss'])
    return losses

  def together():
    nonlocal stacked, stacked_memories
    stacked, metrics, stacked_memories = both(
      stacked, stacked_batch, stacked_others, stacked_memories
    )
    return metrics['task_loss']

  return {'one by one': one_by_one, 'together': together}
