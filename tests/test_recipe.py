"""The recipe of Figure 3, proved in pieces: no ImageNet, no accelerator."""

import itertools
import types

import jax
import jax.numpy as jnp
import pytest
from networks import SHAPE, make_tiny_resnet, sgd

from codistill import losses, optim, sharding
from codistill.algorithm import Member, codistill
from codistill.exchange.memory import InMemoryExchange
from codistill.exchange.rules import ANY_PEER
from codistill.exchange.topology import make_topology
from codistill.train_state import Network, init_state
from codistill.train_step import make_updates
from experiments import config as config_lib

CONFIG = config_lib.load('imagenet_codistill')


def test_the_learning_rate_at_every_boundary():
  # Goyal et al.: 0.1 · B/256 after 5 epochs from 0.1; ÷ 10 at 30, 60, 80.
  schedule = CONFIG.schedule
  rate = optim.SCHEDULES[schedule.name](**schedule[schedule.name])
  peak = 0.1 * CONFIG.batch_size / 256
  epoch = 1_281_167 / CONFIG.batch_size
  warm, *drops = (round(epoch * epochs) for epochs in (5, 30, 60, 80))
  assert schedule.warmup_piecewise.warmup_steps == warm
  assert list(schedule.warmup_piecewise.drop_at_steps) == drops
  assert float(rate(0)) == pytest.approx(0.1)
  assert float(rate(warm - 1)) == pytest.approx(peak - (peak - 0.1) / warm)
  value = peak
  assert float(rate(warm)) == pytest.approx(peak)
  for drop in drops:
    assert float(rate(drop - 1)) == pytest.approx(value)
    value /= 10
    assert float(rate(drop)) == pytest.approx(value)


class Tape:
  """Updates that record their kind."""

  def __init__(self):
    self.seen = []

  def burn_in(self, state, batch):
    self.seen.append(('burn-in', ()))
    return state, {'task_loss': 1.0}

  def codistill(self, state, batch, peers):
    self.seen.append(('codistill', tuple(peer.step for peer in peers)))
    return state, {'task_loss': 1.0}

  def published(self, state):
    return state.variables


def test_psi_is_switched_on_after_3000_updates_and_peers_change_every_50():
  tape = Tape()
  state = types.SimpleNamespace(variables={'params': jnp.zeros(1)})
  exchange = InMemoryExchange(
    make_topology('all', 2),
    reload_interval_steps=CONFIG.codistill.reload_interval_steps,
    delay_steps=0,
    immediate=False,
    rules=ANY_PEER,
  )
  burn_in = CONFIG.codistill.burn_in_steps
  reports = codistill(
    [Member(i, state, itertools.repeat({})) for i in range(2)],
    tape,
    exchange,
    burn_in,
    burn_in + 102,
  )
  for _ in reports:
    pass
  mine = tape.seen[::2]
  assert burn_in == 3_000
  assert [kind for kind, _ in mine] == ['burn-in'] * 3_000 + ['codistill'] * 102
  assert [steps for _, steps in mine[3_000:]] == (
    [(3_000,)] * 50 + [(3_050,)] * 50 + [(3_100,)] * 2
  )


def test_it_learns_16_images_by_heart():
  mesh = sharding.make_mesh(2)
  model = make_tiny_resnet(group_size=8, stages=(1, 1), width=16)
  network, key = Network(model, sgd(0.2)), jax.random.key(0)
  workers = {'num_async_workers': 1}
  updates = make_updates(
    [network], mesh, losses.ALGORITHM_1, num_microbatches=1, **workers
  )
  keys = {'init_key': key, 'noise_key': key}
  state = init_state(network, batch_size=16, **keys, **workers)
  state = sharding.replicate(state, mesh)
  images = jax.random.normal(key, (16, *SHAPE))
  batch = {'inputs': images, 'labels': jnp.arange(16) % 10}
  batch = sharding.split_batch(batch, mesh)
  for _ in range(40):
    state, metrics = updates.burn_in(state, batch)
  assert float(metrics['accuracy']) == 1.0
  assert float(metrics['task_loss']) < 0.1
