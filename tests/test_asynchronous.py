"""Asynchronous SGD against a hand-computed case; workers keep to themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codistill import losses, sharding
from codistill.algorithm import Peer
from codistill.models import Head, Model, Prediction
from codistill.rivals import asynchronous
from codistill.train_state import Network, init_state
from codistill.train_step import make_updates

LANES, RATE = 2, 0.5


def make_scalar():
  """One weight w: logits (w, 0), and a carry that counts its batches."""

  def predict(variables, inputs, memory):
    w = variables['params']['w']
    features = jnp.ones((*inputs.shape[:1], 1))
    head = Head(jnp.stack([w, jnp.zeros_like(w)])[None], jnp.zeros(2))
    return Prediction(features, head), jax.tree.map(lambda m: m + 1, memory)

  def forward(variables, inputs, memory, key):
    prediction, memory = predict(variables, inputs, memory)
    return prediction, {}, memory

  return Model(
    init=lambda key: {'params': {'w': jnp.float32(0.0)}},
    predict=predict,
    forward=forward,
    memory=lambda batch_size: {'count': jnp.zeros((batch_size, 3))},
  )


def train(num_workers, num_steps, peers=()):
  network = Network(make_scalar(), optax.sgd(RATE))
  key, workers = jax.random.key(0), {'num_async_workers': num_workers}
  keys = {'init_key': key, 'noise_key': key}
  state = init_state(network, batch_size=LANES, **keys, **workers)
  place, descent = sharding.make_mesh(1), losses.ALGORITHM_1
  updates = make_updates(
    [network], place, descent, num_microbatches=1, **workers
  )
  # Labels change, so that a gradient tells its batch.
  weights = []
  for step in range(num_steps):
    labels = jnp.full((LANES,), step % 2)
    batch = {'inputs': jnp.zeros((LANES, 1)), 'labels': labels}
    if peers:
      state, _ = updates.codistill(state, batch, peers)
    else:
      state, _ = updates.burn_in(state, batch)
    weights.append(float(state.variables['params']['w']))
  return weights, state


def by_hand(num_workers, num_steps):
  """w ← w − η (softmax(w′, 0)₀ − [label = 0]), w′ of W − 1 updates ago."""
  history = [0.0]
  for step in range(num_steps):
    old = history[max(0, step - (num_workers - 1))]
    gradient = 1 / (1 + np.exp(-old)) - (step % 2 == 0)
    history.append(history[-1] - RATE * gradient)
  return history[1:]


@pytest.mark.parametrize('num_workers', [1, 2, 3, 5])
def test_gradients_are_as_old_as_there_are_other_workers(num_workers):
  weights, _ = train(num_workers, 12)
  np.testing.assert_allclose(weights, by_hand(num_workers, 12), rtol=1e-5)
  # Old gradients make another run.
  another = not np.allclose(weights, by_hand(1, 12), rtol=1e-3)
  assert another == (num_workers > 1)


def test_each_worker_has_a_carry_of_its_own_and_one_of_each_peer():
  peer = Peer(4, 0, {'params': {'w': jnp.float32(1.0)}})
  _, state = train(3, 7, peers=(peer,))
  # Batches of workers 0, 1, 2: three, two and two.
  expected = np.broadcast_to([[3.0], [2.0], [2.0]], (LANES, 3, 3))
  for carry in (state.memory, state.peer_memories[4]):
    np.testing.assert_array_equal(carry['count'], expected)
  mine = asynchronous.carry_of(state.memory, 3, 1)
  assert mine['count'].shape == (LANES, 3)


def test_one_worker_is_synchronous_and_keeps_nothing():
  _, state = train(1, 2)
  assert state.past == ()
  assert state.memory['count'].shape == (LANES, 3)
