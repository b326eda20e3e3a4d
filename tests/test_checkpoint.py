"""What is saved comes back: bit for bit, on other devices, with stale peers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from networks import make_small_dnn, sgd

from codistill import sharding
from codistill.algorithm import Publications
from codistill.checkpoint import Checkpoints
from codistill.train_step import init_state

BATCH = 8
NOTES = {'whatever': {'an': [1, 0.1, None]}}


@functools.cache
def model():
  # With a carry, as a network with a memory has it.
  carry = {'memory': lambda size: {'h': jnp.zeros((size, 3))}}
  return dataclasses.replace(make_small_dnn(), **carry)


def state_of(member, peers=()):
  state = init_state(
    model(),
    sgd(),
    batch_size=BATCH,
    init_key=jax.random.key(member),
    noise_key=jax.random.key(100 + member),
    num_async_workers=1,
  )
  return dataclasses.replace(
    state,
    step=jnp.int32(12),
    memory={'h': jnp.full((BATCH, 3), 1.0 + member)},
    peer_memories={p: {'h': jnp.full((BATCH, 3), 10.0 + p)} for p in peers},
  )


def save(path, states, publications=(), extra=(), step=12):
  mesh = sharding.make_mesh(1)
  states = {m: sharding.replicate(s, mesh) for m, s in states.items()}
  published = Publications(dict(publications), NOTES)
  checkpoints = Checkpoints(path)
  checkpoints.save(step, states, published, dict(extra))
  checkpoints.close()


def restore(path, num_devices=1):
  checkpoints = Checkpoints(path)
  abstract = jax.eval_shape(functools.partial(state_of, 0))
  mesh = sharding.make_mesh(num_devices)
  result = checkpoints.restore(abstract, mesh, 'float32')
  checkpoints.close()
  return result


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_all_of_it_comes_back_on_any_number_of_devices(tmp_path):
  states = {0: state_of(0, peers=(1, 2)), 1: state_of(1), 2: state_of(2, (0,))}
  publications = {
    0: {9: state_of(5).variables, 12: state_of(6).variables},
    1: {},
    2: {6: state_of(7).variables},
  }
  extra = {'seconds': 1.5, 'active': [0, 2]}
  save(tmp_path / 'c', states, publications, extra)
  for num_devices in (1, 8):
    found = restore(tmp_path / 'c', num_devices)
    assert_restored(found, states, publications, extra)
    for leaf in jax.tree.leaves((found.states, found.publications.variables)):
      assert len(leaf.sharding.device_set) == num_devices
    carry = found.states[0].peer_memories[1]['h']
    shard = carry.addressable_shards[0].data.shape
    assert shard == (BATCH // num_devices, 3)


def assert_restored(found, states, publications, extra):
  assert found.step == 12
  assert found.extra == extra
  assert found.states.keys() == states.keys()
  for member, state in states.items():
    assert_same(found.states[member], state)
  assert_same(found.publications.variables, publications)
  assert found.publications.notes == NOTES


def test_without_publications_and_before_there_is_one(tmp_path):
  assert restore(tmp_path / 'c') is None
  save(tmp_path / 'c', {3: state_of(3)})
  assert_restored(restore(tmp_path / 'c'), {3: state_of(3)}, {}, {})


def test_the_newest_that_is_whole_wins_and_the_one_before_it_is_kept(tmp_path):
  state = state_of(0)
  for step in (4, 8, 12):
    state = dataclasses.replace(state, step=jnp.int32(step))
    save(tmp_path / 'c', {0: state}, step=step)
  # What a killed process left half done: a step folder is renamed into place
  # when it is whole.
  half = tmp_path / 'c' / '13.orbax-checkpoint-tmp'
  (half / 'states').mkdir(parents=True)
  found = restore(tmp_path / 'c')
  assert found.step == found.states[0].step == 12
  steps = {int(p.name) for p in (tmp_path / 'c').iterdir() if p.name.isdigit()}
  assert steps == {8, 12}
