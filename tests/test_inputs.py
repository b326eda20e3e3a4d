"""Inputs of several arrays go everywhere that one array does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from networks import sgd

from codistill import losses, sharding
from codistill.algorithm import Peer
from codistill.evaluate import make_evaluate
from codistill.models import Prediction, make_feedforward
from codistill.models.model import LinearHead
from codistill.train_state import Network, init_state, place_state
from codistill.train_step import make_updates

BATCH, CLASSES = 16, 3


class Linear(nn.Module):
  """The same network for one array, and for two parts of it."""

  @nn.compact
  def __call__(self, inputs, train):
    if isinstance(inputs, dict):
      numbers, words = inputs['numbers'], inputs['words']
      inputs = jnp.concatenate([numbers, words.astype(jnp.float32)], axis=-1)
    head = LinearHead(
      CLASSES, jnp.float32, nn.initializers.lecun_normal(), name='head'
    )
    return Prediction(inputs, head(inputs))


def learn_and_evaluate(model, inputs, labels):
  """Makes an update with a peer on eight devices, then evaluates."""
  mesh = sharding.make_mesh(8)
  network = Network(model, sgd())
  updates = make_updates(
    [network],
    mesh,
    losses.ALGORITHM_1,
    num_async_workers=1,
    num_microbatches=1,
  )
  state, other = (
    init_state(
      network,
      batch_size=BATCH,
      init_key=jax.random.key(member),
      noise_key=jax.random.key(member),
      num_async_workers=1,
    )
    for member in (0, 1)
  )
  batch = {'inputs': inputs, 'labels': labels}
  state, metrics = updates.codistill(
    place_state(state, mesh),
    sharding.split_batch(batch, mesh),
    (Peer(1, 0, sharding.replicate(other.variables, mesh)),),
  )
  evaluation = make_evaluate(mesh, loss_chunk_tokens=None)(
    [model, model],
    [state.variables, other.variables],
    [{**batch, 'mask': np.ones(BATCH, np.float32)}],
  )
  return jax.device_get((state.variables, metrics)), evaluation


def test_a_tree_of_inputs_is_learnt_from_as_one_array_of_them():
  rng = np.random.default_rng(0)
  numbers = rng.normal(size=(BATCH, 4)).astype(np.float32)
  words = rng.integers(5, size=(BATCH, 2)).astype(np.int32)
  labels = rng.integers(CLASSES, size=BATCH).astype(np.int32)
  whole = learn_and_evaluate(
    make_feedforward(Linear(), (6,)),
    np.concatenate([numbers, words.astype(np.float32)], axis=-1),
    labels,
  )
  parts = learn_and_evaluate(
    make_feedforward(
      Linear(),
      {'numbers': (4,), 'words': (2,)},
      {'numbers': jnp.float32, 'words': jnp.int32},
    ),
    {'numbers': numbers, 'words': words},
    labels,
  )
  jax.tree.map(np.testing.assert_array_equal, parts[0], whole[0])
  assert parts[1] == whole[1]
  assert parts[1].num_examples == BATCH
