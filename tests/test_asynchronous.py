"""Asynchronous SGD against a hand-computed case; workers keep to themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from codistill import asynchronous, losses, sharding
from codistill.algorithm import Peer
from codistill.models import Head, Model, Prediction
from codistill.train_step import init_state, make_updates

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
  model, optimizer = make_scalar(), optax.sgd(RATE)
  key = jax.random.key(0)
  state = init_state(
    model,
    optimizer,
    batch_size=LANES,
    init_key=key,
    noise_key=key,
    num_async_workers=num_workers,
  )
  updates = make_updates(
    model,
    optimizer,
    sharding.make_mesh(1),
    losses.ALGORITHM_1,
    num_async_workers=num_workers,
    num_microbatches=1,
  )
  # Labels that change, so that a gradient tells which batch it is of.
  weights = []
  for step in range(num_steps):
    batch = {
      'inputs': jnp.zeros((LANES, 1)),
      'labels': jnp.full((LANES,), step % 2),
    }
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


def test_old_gradients_make_another_run():
  assert not np.allclose(by_hand(3, 12), by_hand(1, 12), rtol=1e-3)


def test_each_worker_has_a_carry_of_its_own():
  _, state = train(3, 7)
  # Batches of workers 0, 1, 2: three, two and two.
  expected = np.broadcast_to([[3.0], [2.0], [2.0]], (LANES, 3, 3))
  np.testing.assert_array_equal(state.memory['count'], expected)
  mine = asynchronous.carry_of(state.memory, 3, 1)
  assert mine['count'].shape == (LANES, 3)


def test_a_peer_has_a_carry_over_each_worker_s_stream():
  peer = Peer(4, 0, {'params': {'w': jnp.float32(1.0)}})
  _, state = train(3, 4, peers=(peer,))
  counts = np.asarray(state.peer_memories[4]['count'])
  np.testing.assert_array_equal(counts[:, :, 0], [[2, 1, 1]] * LANES)


def test_one_worker_is_synchronous_and_keeps_nothing():
  _, state = train(1, 2)
  assert state.past == ()
  assert state.memory['count'].shape == (LANES, 3)
