"""A saved state comes back: bit for bit, on other devices, with stale peers."""

import dataclasses
import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_small_dnn, sgd
from orbax.checkpoint import v1 as ocp

from codistill import sharding
from codistill.algorithm import Publications
from codistill.storage.checkpoint import Checkpoints
from codistill.storage.step_folders import UnreadableError, brief
from codistill.train_state import Network, init_state

BATCH = 8
NOTES = {'any': {'an': [1, 0.1, None]}}


@functools.cache
def model():
  # It has a carry, like a network with a memory.
  carry = {'memory': lambda size: {'h': jnp.zeros((size, 3))}}
  return dataclasses.replace(make_small_dnn(), **carry)


def state_of(member, peers=()):
  state = init_state(
    Network(model(), sgd()),
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


def save(where, states, publications=(), extra=(), step=12):
  """Saves into a folder, or through checkpoints that have it open."""
  checkpoints = where if isinstance(where, Checkpoints) else Checkpoints(where)
  mesh = sharding.make_mesh(1)
  states = {m: sharding.replicate(s, mesh) for m, s in states.items()}
  published = Publications(dict(publications), NOTES)
  return checkpoints.save(step, states, published, dict(extra))


def restore(path, num_devices=1, last=99):
  abstract = jax.eval_shape(functools.partial(state_of, 0))
  mesh = sharding.make_mesh(num_devices)
  return Checkpoints(path).restore(
    lambda member: abstract,
    mesh,
    'float32',
    lambda step: 'so late' if step > last else '',
  )


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


def at(step):
  return {0: dataclasses.replace(state_of(0), step=jnp.int32(step))}


def steps_in(folder):
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_the_newest_that_is_whole_wins_and_the_one_before_it_is_kept(tmp_path):
  folder = tmp_path / 'c'
  checkpoints = Checkpoints(folder)
  # The last one is written again.
  for step in (4, 8, 12, 12):
    assert save(checkpoints, at(step), step=step) == ''
  # A killed process leaves this, because a step folder is renamed into place
  # when it is whole.
  (folder / '13.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
  found = restore(folder)
  assert found.step == found.states[0].step == 12
  assert found.passed_over == ()
  assert [path.name for path in sorted(folder.iterdir())] == ['12', '8']
  # A caller may ask for an older one.
  found = restore(folder, last=11)
  assert (found.step, found.states[0].step) == (8, 8)
  with pytest.raises(
    UnreadableError, match=r'12 cannot be used: so late.*8 cannot'
  ):
    restore(folder, last=7)


def test_a_damaged_one_is_passed_over_and_so_is_what_is_said_with_it(tmp_path):
  folder = tmp_path / 'c'
  state, publications = state_of(0), {0: {9: state_of(5).variables}}
  checkpoints = Checkpoints(folder)
  for step in (8, 12):
    save(checkpoints, {0: state}, publications, {'at': step}, step=step)
  # scripts.chaos damages the files of the states in many ways.
  for name in ('publications/*/d/*', '_CHECKPOINT_METADATA'):
    [path] = (folder / '12').glob(name)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    # In the metadata it changes a digit of the step, which can still be read.
    at = whole.rindex(b'12') if b'"at"' in whole else len(whole) * 2 // 3
    flipped[at] ^= 8
    path.write_bytes(flipped)
    found = restore(folder)
    said = re.escape(f'{folder}/12 is damaged: it is not what was saved')
    assert [bool(re.match(said, why)) for why in found.passed_over] == [True]
    assert_same(found.states[0], state)
    assert_same(found.publications.variables, publications)
    assert (found.step, found.extra) == (8, {'at': 8})
    path.write_bytes(whole)
  # Orbax has no word for an item whose description it cannot read.
  for item in ('state', 'publications'):
    path = folder / '12' / item / '_METADATA'
    whole = path.read_bytes()
    path.write_bytes(whole[1:])
    [why] = restore(folder).passed_over
    assert why.endswith(f'(FileNotFoundError its {item} cannot be read)')
    path.write_bytes(whole)


def test_numbers_that_changed_are_noticed_and_what_is_left_is_kept(tmp_path):
  folder = tmp_path / 'c'
  opened = Checkpoints(folder)
  for step in (4, 8):
    save(opened, at(step), step=step)
  # Like a flipped bit that still decodes.
  other = tmp_path / 'other'
  save(other, {0: state_of(1)}, step=8)
  shutil.rmtree(folder / '8' / 'state')
  shutil.copytree(other / '8' / 'state', folder / '8' / 'state')
  abstract, mesh = jax.eval_shape(lambda: state_of(0)), sharding.make_mesh(1)
  checkpoints = Checkpoints(folder)
  found = checkpoints.restore(lambda member: abstract, mesh, 'float32')
  assert found.step == 4
  assert '8 is damaged: it is not what was saved' in found.passed_over[0]
  # The damaged one does not replace the good one, and is overwritten when its
  # step comes again.
  save(checkpoints, at(6), step=6)
  assert steps_in(folder) == [4, 6]
  shutil.copytree(other / '8', folder / '8')
  save(checkpoints, at(8), step=8)
  assert steps_in(folder) == [6, 8]
  assert restore(folder).states[0].step == 8
  for path in folder.glob('*/state/_METADATA'):
    path.unlink()
  with pytest.raises(UnreadableError, match=r'/8 is damaged.*/6 is damaged'):
    restore(folder)


def test_what_was_written_before_there_were_checksums_is_read(tmp_path):
  states = {0: state_of(0, peers=(1,)), 1: state_of(1)}
  peers = {'1': states[0].peer_memories[1]}
  variables = state_of(6).variables
  with ocp.training.Checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save_checkpointables(
      12,
      {
        'states': {
          '0': dataclasses.replace(states[0], peer_memories=peers),
          '1': states[1],
        },
        'publications': {'1': {'9': variables}},
      },
      custom_metadata={
        'seconds': 1.5,
        'layout': {
          'admitted': {'0': [1], '1': []},
          'published': {'0': [], '1': [9]},
        },
        'exchange': NOTES,
      },
    )
  found = restore(tmp_path / 'c')
  published = {0: {}, 1: {9: variables}}
  assert_restored(found, states, published, {'seconds': 1.5})


def test_what_is_newer_than_where_a_run_goes_on_does_not_come_back(tmp_path):
  for step in (4, 8, 12):
    (tmp_path / str(step)).mkdir()
  Checkpoints(tmp_path).leave_behind(8)
  seen = [path.name for path in tmp_path.iterdir() if path.name.isdecimal()]
  assert sorted(seen) == ['4', '8']
  Checkpoints(tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['4', '8']


def test_an_error_is_told_in_a_line_that_a_terminal_shows():
  # Orbax quotes names that it finds in a damaged file.
  error = ValueError('unknown key\n  in\x7fit\x1b[31m naïve' + 200 * '.')
  text = brief(error)
  assert text.startswith('ValueError unknown key in\ufffdit\ufffd[31m naïve..')
  assert len(text) == len('ValueError ') + 120
